"""Debian's kernel under QEMU: real udevd, real drivers, and devices plugged and unplugged.

The guest's root is this machine's own, read-only, with an overlay in memory: the checkout and the
environment that run the tests are there under the same paths, and nothing the guest does reaches
this machine's disks. It reads files as the user who runs it, so that should be root. Kernel and
modules come from Debian's packages, are not installed, and stay in ``$VM_CACHE`` (by default
``~/.cache/balenaflash-vm``) until that is deleted.

``python -m pytest -m vm tests/vm`` builds what is missing and runs it, in one process; the default
run leaves it out. It needs apt-get install cpio mount qemu-system-x86 udev. Where there is no
KVM that works, the processor is emulated, and all of it takes minutes.

==============  ==================================================================
build.py        kernel, modules and initramfs, kept in a cache directory
guest/          what runs inside: init, what starts udevd, the agent
qmp.py          QEMU's control socket
processes.py    programs inside the guest, as the tests see them
machine.py      a guest from its start to its end, and what is plugged into it
==============  ==================================================================
"""
