// Package procroot shows the files of a container, which are in its machine, as the
// root directory of the machine's process on the host.
//
// Clients that want a running container's files take /proc/PID/root of its task's
// process (nerdctl cp does). That process is the VMM here. Where it may change its root
// directory, it gets one that is a FUSE file system, mounted nowhere, which this package
// serves: until the container is made it is empty, and then each operation is one
// request to the guest (applevm.guest.v1.Files).
//
// The guest is not trusted. What it answers is checked and bounded; it cannot name a
// file of the host, and set-user-ID bits and devices in the file system have no effect
// there. A guest that does not answer makes an operation fail after a deadline.
package procroot
