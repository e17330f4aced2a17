/* What will be read soon is brought into the system's page cache. Part of kernels.c. */
#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#endif

#define ASKED (1 << 17)  /* bytes asked for at once: systems cut what is longer than they ever read ahead, some only what exceeds this */
#define STRIDE (1 << 16) /* bytes between places that are touched: where a system means to read on lies at multiples of it */
#define FAR (1 << 23)    /* bytes that a touch claims to want, more than systems read at once */

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

/* Touches a file at every STRIDE as a reader would that goes through it in order and cannot wait, from its first byte of each on
 * to bytes that cannot be written to. Where nothing is there, the system begins to read FAR, or as much as it ever reads at once;
 * where it has marked that a reader has come half way, it reads on, and in larger pages each time. That takes a fifth of the
 * processor's time that single pages take. It may end up to two such reads beyond what was asked for. */
static void touch(int file, int64_t at, int64_t nbytes) {
#ifdef RWF_NOWAIT
    char first, *rest = mmap(0, FAR, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (rest == MAP_FAILED) return;
    struct iovec parts[] = {{&first, 1}, {rest, FAR - 1}};
    for (int64_t from = at; from < at + nbytes; from += STRIDE)
        if (preadv2(file, parts, 2, (off_t)from, RWF_NOWAIT) < 0 && errno != EAGAIN) break; /* not for such files */
    munmap(rest, FAR);
#endif
}

/* Has the system fetch some bytes of a file, unless it has them: all of them, as `touch` leaves to chance. Of many it only looks
 * at the ends, since it would look at every page between. */
void plait_ahead(int file, int64_t at, int64_t nbytes) {
    int64_t end = at + nbytes;
    if (nbytes > ASKED) {
        int here = plait_cached(file, at) == 1 && plait_cached(file, end - 1) == 1;
        if (here && plait_cached(file, end + 2 * FAR) == 1) return;
        touch(file, at, nbytes); /* also of what is there, which may be marked */
        if (here) return;
    }
#ifdef __linux__
    for (; at < end; at += ASKED)
        posix_fadvise(file, (off_t)at, (off_t)(end - at < ASKED ? end - at : ASKED), POSIX_FADV_WILLNEED);
#endif
}
