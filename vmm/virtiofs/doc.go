// Package virtiofs is a virtio file system device (virtio 1.2 section 5.11) that
// shares one directory of the host with a guest. It is served over package
// vhostuser, in this process.
//
// The package keeps three things apart:
//
//   - Device takes requests out of the guest's memory, checks them, and answers;
//   - go-fuse's protocol server turns them into calls;
//   - fileSystem executes these on the host.
//
// The guest is hostile. A request is copied before it is looked at. The guest
// names files by numbers that fileSystem has given out, and by single names within
// a directory, never by a path; symbolic links are read, not followed. So nothing
// outside of the shared directory can be named. Only regular files and directories
// are ever opened. What a guest can make the host hold (descriptors, memory, requests
// under way) is bounded.
//
// A server that runs as root gives files the owners and modes that the guest wants. An
// ordinary user's files are all its own; what the guest makes of their owners and modes
// is recorded beside them, and shown to the guest (owners_linux.go).
//
// What the guest's kernel caches it may use for a second without asking; it writes
// through, except for shared mappings, which it writes back when they are synced or
// unmapped. Locks are the guest's own.
package virtiofs
