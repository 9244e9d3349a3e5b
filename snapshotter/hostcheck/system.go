package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/applevm/applevm/snapshotter/view"
)

// system answers what only the system itself knows; tests answer for it.
type system struct {
	// goos is its name, kvm its device for virtual machines on Linux.
	goos, kvm string
	// uid is the user who asks.
	uid int
	// owner is the user to whom a file belongs.
	owner func(path string) (uid int, err error)
	// viewed tells whether the snapshotter's files can be seen (package view).
	viewed func(root string) bool
	// mac answers on macOS.
	mac mac
}

// mac answers what only macOS knows.
type mac struct {
	// version is the system's, for instance 14.6.1.
	version func() (string, error)
	// hypervisor tells whether it can run virtual machines.
	hypervisor func() (bool, error)
	// rosetta tells whether it has Rosetta for Linux, and has it installed.
	rosetta func() (supported, installed bool)
	// shim is the path of the shim.
	shim func() (string, error)
	// codesign runs macOS's program of that name and returns both of its outputs.
	codesign func(ctx context.Context, args ...string) (stdout, stderr string, err error)
}

// thisSystem asks the host.
func thisSystem() system {
	return system{goos: runtime.GOOS, kvm: "/dev/kvm", uid: os.Geteuid(), owner: owner, viewed: view.IsMounted, mac: thisMac()}
}

func owner(path string) (int, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.New("its owner is not known")
	}
	return int(s.Uid), nil
}

// findShim finds the shim as containerd does: in PATH, or beside this program.
func findShim() (string, error) {
	path, err := exec.LookPath(shimBinary)
	if err == nil {
		return path, nil
	}
	self, serr := os.Executable()
	if serr != nil {
		return "", err
	}
	beside := filepath.Join(filepath.Dir(self), shimBinary)
	if _, serr := os.Stat(beside); serr != nil {
		return "", err
	}
	return beside, nil
}

// fifoDirectory is where ctr and nerdctl make FIFOs on macOS, unless they are told
// otherwise (github.com/containerd/containerd/v2/defaults).
const fifoDirectory = "/var/run/containerd/fifo"

// checkOwners looks whether what exists belongs to the user who runs containerd: the one
// whose socket it is. Where all is well it says nothing, as each directory has its line.
func (h *host) checkOwners(context.Context) []Finding {
	sn := h.cfg.Snapshotter
	user, whose := h.sys.uid, "this user"
	if uid, err := h.sys.owner(sn.ContainerdAddress); err == nil {
		user, whose = uid, "the user of "+sn.ContainerdAddress
	}
	paths := slices.Compact([]string{filepath.Clean(sn.Root), filepath.Dir(sn.Address)})
	if h.sys.goos == "darwin" {
		paths = append(paths, fifoDirectory)
	}
	var found []Finding
	for _, p := range paths {
		uid, err := h.sys.owner(p)
		switch {
		case errors.Is(err, fs.ErrNotExist) && p == fifoDirectory:
			found = append(found, fail("run: sudo launchctl kickstart -k system/dev.applevm.directories",
				"owner: %s, where clients make their FIFOs, does not exist: macOS removes it when it starts", p))
		case err != nil, uid == user:
		case user == 0: // who may write anywhere
		default:
			found = append(found, fail(chown(user, p), "owner: %s belongs to uid %d, not to uid %d, %s", p, uid, user, whose))
		}
	}
	return found
}

// checkView looks for the service by which clients that mount snapshots see all files.
// They can mount on Linux alone, and as root.
func (h *host) checkView(context.Context) []Finding {
	switch root := h.cfg.Snapshotter.Root; {
	case h.sys.goos != "linux" || h.sys.uid != 0:
		return nil
	case h.sys.viewed(root):
		return []Finding{ok("view: clients that mount snapshots see all files")}
	default:
		return []Finding{warn("start `applevm-snapshotter view`, or systemctl enable --now applevm-view",
			"view: nobody serves it for %s: nerdctl's cp, diff, export and new volumes see /etc/passwd and /etc/group alone", root)}
	}
}
