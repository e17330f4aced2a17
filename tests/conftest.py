"""What all tests share."""

import os
import signal

# before torch and huggingface_hub are imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"

# a shell starts what runs in the background with Ctrl-C ignored, and processes of tests would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
