package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxSocketPath is how long a unix socket's path can be, in bytes: macOS has
// room for 104 with the final NUL (sys/un.h), Linux for 108.
const maxSocketPath = 103

// socketTemp is as long as what the daemon puts beside its socket while it
// makes it: a directory of os.MkdirTemp, ".s" and up to ten digits, with "/s".
const socketTemp = ".s0123456789/s"

// checkDirectories looks whether this user can write where the parts of applevm
// write.
func (h *host) checkDirectories(context.Context) []Finding {
	sn := h.cfg.Snapshotter
	found := []Finding{
		checkDirectory("root directory", sn.Root, "snapshotter.root"),
		checkDirectory("socket directory", filepath.Dir(sn.Address), "snapshotter.address"),
	}
	if dir := h.cfg.QEMU.CacheDir; dir != "" {
		found = append(found, checkDirectory("cache directory", dir, "qemu.cache_dir"))
	}
	return found
}

func checkDirectory(what, dir, setting string) Finding {
	at, err := writable(dir)
	switch {
	case err == nil && at == dir:
		return ok("%s: %s is writable", what, dir)
	case err == nil:
		return ok("%s: %s will be made", what, dir)
	}
	subject := dir
	if at != dir {
		subject += " cannot be made: " + at
	}
	return fail(fmt.Sprintf("run this as the user that runs containerd, make the directory that user's, or set %s", setting),
		"%s: %s: %s for uid %d", what, subject, reason(err), os.Geteuid())
}

// writable looks whether dir can be written to or, where it does not exist, be
// made. It returns the directory that decided.
func writable(dir string) (at string, err error) {
	for at = filepath.Clean(dir); ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at):
			continue
		case err != nil:
			return at, err
		case !st.IsDir():
			return at, syscall.ENOTDIR
		}
		return at, unix.Access(at, unix.R_OK|unix.W_OK|unix.X_OK)
	}
}

// checkSocketPaths looks whether the sockets' paths fit into an address.
func (h *host) checkSocketPaths(context.Context) []Finding {
	sn := h.cfg.Snapshotter
	// While it is made, the daemon's socket has another name, which may be longer.
	temp := filepath.Join(filepath.Dir(sn.Address), socketTemp)
	return []Finding{
		checkSocketPath("snapshotter socket", "snapshotter.address", sn.Address, max(len(sn.Address), len(temp))),
		checkSocketPath("containerd socket", "snapshotter.containerd_address", sn.ContainerdAddress, len(sn.ContainerdAddress)),
	}
}

func checkSocketPath(what, setting, path string, length int) Finding {
	switch {
	case path == "":
		return fail("set "+setting, "%s: there is no path", what)
	case length > maxSocketPath:
		return fail(fmt.Sprintf("set %s to a shorter path", setting),
			"%s: %s needs a path of %d bytes, a unix socket has room for %d", what, path, length, maxSocketPath)
	}
	return ok("%s: %s is short enough", what, path)
}
