/* What will be read soon is brought into the system's page cache. Part of kernels.c. */
#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#endif

#define ASKED (1 << 17) /* bytes asked for at once: systems cut what is longer than they ever read ahead, some only what exceeds this */

/* Whether the page cache holds a byte of a file, 1 or 0; -1 where the system tells nothing or, as of others' files, no truth.
 * It looks without reading: a read that would not wait has the system fetch the page, and by itself. */
int plait_cached(int file, int64_t at) {
    int found = -1;
#ifdef __linux__
    struct stat facts;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (fstat(file, &facts) || facts.st_uid != geteuid()) return -1;
    void *mapped = mmap(0, page, PROT_READ, MAP_SHARED, file, (off_t)(at - at % (int64_t)page));
    if (mapped == MAP_FAILED) return -1;
    unsigned char resident;
    if (!mincore(mapped, page, &resident)) found = resident & 1;
    munmap(mapped, page);
#endif
    return found;
}

/* Has the system fetch some bytes of a file, unless they are many and it has both ends: it would look at every page between. */
void plait_ahead(int file, int64_t at, int64_t nbytes) {
    if (nbytes > ASKED && plait_cached(file, at) == 1 && plait_cached(file, at + nbytes - 1) == 1) return;
#ifdef __linux__
    for (int64_t end = at + nbytes; at < end; at += ASKED)
        posix_fadvise(file, (off_t)at, (off_t)(end - at < ASKED ? end - at : ASKED), POSIX_FADV_WILLNEED);
#endif
}
