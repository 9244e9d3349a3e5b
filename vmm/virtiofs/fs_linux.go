package virtiofs

import (
	"container/list"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// valid is how long the guest may take what it knows for true.
	valid = time.Second
	// wantedFiles is the number of open files that the process should be able to
	// have: the guest may have as many open.
	wantedFiles = 1 << 20
	// spareFiles are left to the rest of the process.
	spareFiles = 512
	// maxDevices bounds the file systems of the host that get a range of inode
	// numbers of their own.
	maxDevices = 1 << 12
)

// fileSystem is a directory of the host as go-fuse's protocol server wants it. What it
// does not implement is not supported: the embedded one says so.
type fileSystem struct {
	fuse.RawFileSystem
	readOnly bool
	oneMount bool    // what is mounted below is not shared
	owners   *owners // nil for root, whose files have the owners that they have
	root     *node
	files    map[string]int // descriptors of what is in the root, if that is all there is
	limit    int            // of descriptors
	maxAwake int            // see letSleep
	mark     uint32         // see pretence
	recent   ownDoings

	mu      sync.Mutex
	closed  bool
	open    int // descriptors
	last    uint64
	nodes   map[uint64]*node
	byFile  map[fileKey]*node
	handles map[uint64]*handle
	devices map[device]uint64
	awake   *list.List // of the nodes that may sleep and do not, the last used first
}

// descriptor is an open file of the host that is closed after its last use.
type descriptor struct {
	fd   int // -1 if closed
	uses int // guarded by fileSystem.mu
}

// node is a file that the guest knows.
type node struct {
	descriptor // O_PATH: it names the file and opens nothing
	id         uint64
	key        fileKey
	kind       uint16 // unix.S_IFREG and so on
	lookups    uint64 // how often the guest got it and did not forget it

	// Where it is found again after it slept; no parent if it must not sleep.
	parent   *node
	name     string
	children int           // nodes whose parent it is: it is one as long as there are any
	awake    *list.Element // of fileSystem.awake
}

type device struct{ major, minor uint32 }

// fileKey tells files apart. One that is mounted at two places is two.
type fileKey struct {
	device
	ino, mount uint64
	kind       uint16
}

func newFileSystem(path string, readOnly bool) (*fileSystem, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("share the directory %s: %w", path, err)
	}
	fs := &fileSystem{
		recent:        newOwnDoings(),
		RawFileSystem: fuse.NewDefaultRawFileSystem(), readOnly: readOnly, limit: fileLimit(), awake: list.New(),
		nodes: map[uint64]*node{}, byFile: map[fileKey]*node{}, handles: map[uint64]*handle{},
		devices: map[device]uint64{}, last: rootNode, mark: newMark(),
	}
	if uid := unix.Geteuid(); uid != 0 {
		fs.owners = &owners{uint32(uid)}
	}
	fs.maxAwake = min(maxAwake, fs.limit/2)
	stx, err := stat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("share the directory %s: %w", path, err)
	}
	fs.root = &node{descriptor: descriptor{fd: fd, uses: 1}, id: rootNode, key: keyOf(stx), kind: unix.S_IFDIR}
	fs.open = 1
	fs.devices[fs.root.key.device] = 0 // its inode numbers stay as they are
	fs.nodes[rootNode], fs.byFile[fs.root.key] = fs.root, fs.root
	return fs, nil
}

// fileLimit raises how many files the process may open, as far as it may, and returns
// how many of these a share may use.
func fileLimit() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return spareFiles
	}
	if l.Cur < wantedFiles {
		// Only with CAP_SYS_RESOURCE. prlimit, because what Setrlimit sets here
		// children would inherit.
		_ = unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: wantedFiles, Max: max(l.Max, wantedFiles)}, nil)
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			return spareFiles
		}
	}
	return int(min(l.Cur, wantedFiles)) - spareFiles
}

// String implements fuse.RawFileSystem.
func (fs *fileSystem) String() string { return "applevm" }

// status is err as the protocol has it.
func status(err error) fuse.Status {
	var e syscall.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &e):
		return fuse.Status(e)
	}
	return fuse.EIO
}

// ignoringEINTR repeats a system call that a signal of Go's runtime has interrupted.
func ignoringEINTR[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if err != unix.EINTR { //nolint:errorlint // system calls return it bare
			return v, err
		}
	}
}

// again is ignoringEINTR for calls that return an error only.
func again(call func() error) error {
	_, err := ignoringEINTR(func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func stat(fd int) (*unix.Statx_t, error) {
	var stx unix.Statx_t
	err := again(func() error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &stx)
	})
	return &stx, err
}

func keyOf(stx *unix.Statx_t) fileKey {
	return fileKey{device{stx.Dev_major, stx.Dev_minor}, stx.Ino, stx.Mnt_id, stx.Mode & unix.S_IFMT}
}

// procPath is a path by which the kernel finds the file that fd names, whatever
// has become of the file's own paths.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// checkName refuses what is not one name in a directory.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	case len(name) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	}
	return nil
}

// node returns a file that the guest knows; done must follow.
func (fs *fileSystem) node(id uint64) (*node, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.nodes[id]
	if n == nil {
		return nil, unix.ESTALE
	}
	if err := fs.use(n); err != nil {
		return nil, err
	}
	return n, nil
}

// done ends a use of d. The last one closes it.
func (fs *fileSystem) done(d *descriptor) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.release(d)
}

func (fs *fileSystem) release(d *descriptor) {
	d.uses--
	if d.uses == 0 {
		fs.closeFD(d)
	}
}

func (fs *fileSystem) closeFD(d *descriptor) {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
		fs.open--
	}
}

// inDir calls do with the directory that the guest names, and checks that name is a
// name.
func (fs *fileSystem) inDir(id uint64, name string, do func(dir *node) error) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	return fs.with(id, func(n *node) error {
		if n.kind != unix.S_IFDIR {
			return unix.ENOTDIR
		}
		return do(n)
	})
}

// with calls do with a file that the guest knows.
func (fs *fileSystem) with(id uint64, do func(*node) error) fuse.Status {
	n, err := fs.node(id)
	if err != nil {
		return status(err)
	}
	defer fs.done(&n.descriptor)
	return status(do(n))
}

// change is inDir for calls that change the directory.
func (fs *fileSystem) change(id uint64, name string, do func(dir *node) error) fuse.Status {
	if fs.readOnly {
		return fuse.EROFS
	}
	return fs.inDir(id, name, do)
}

// openChild names a file in a directory, a symbolic link itself.
func (fs *fileSystem) openChild(dir *node, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	if fs.oneMount {
		how.Resolve |= unix.RESOLVE_NO_XDEV
	}
	fd, err := ignoringEINTR(func() (int, error) { return unix.Openat2(dir.fd, name, &how) })
	if err == unix.EXDEV { //nolint:errorlint // system calls return it bare
		err = unix.EACCES
	}
	return fd, err
}

// child is openChild for directories that there may be no more than an idea of.
func (fs *fileSystem) child(dir *node, name string) (int, error) {
	if fs.files == nil || dir != fs.root {
		return fs.openChild(dir, name)
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fd, ok := fs.files[name]
	if !ok || fs.closed {
		return -1, unix.ENOENT
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// enter gives the guest the file that dir has under the name.
func (fs *fileSystem) enter(dir *node, name string, out *fuse.EntryOut) error {
	fd, err := fs.child(dir, name)
	if err != nil {
		return err
	}
	stx, err := stat(fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	parent := dir
	if fs.files != nil && dir == fs.root {
		parent = nil // its name does not lead to it
	}
	seen := *stx
	fs.owners.show(fd, &seen)
	id, err := fs.adopt(fd, stx, parent, name)
	if err != nil {
		return err
	}
	out.NodeId = id
	out.SetEntryTimeout(valid)
	out.SetAttrTimeout(valid)
	fs.attr(&seen, &out.Attr)
	return nil
}

// adopt makes a node of fd, or closes fd if there is one of its file. The guest has
// got it once more then, by the name in the directory parent.
func (fs *fileSystem) adopt(fd int, stx *unix.Statx_t, parent *node, name string) (uint64, error) {
	key := keyOf(stx)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.byFile[key]
	if n != nil && n.fd >= 0 {
		_ = unix.Close(fd)
	} else if !fs.room() || n == nil && len(fs.nodes) >= maxNodes {
		_ = unix.Close(fd)
		return 0, unix.ENFILE
	} else {
		if n == nil {
			fs.last++
			n = &node{descriptor: descriptor{fd: -1, uses: 1}, id: fs.last, key: key, kind: key.kind}
			fs.nodes[n.id], fs.byFile[key] = n, n
			if parent != nil {
				fs.attach(n, parent, name)
			}
		}
		fs.keep(n, fd)
	}
	n.lookups++
	if n.parent != nil && parent != nil {
		fs.attach(n, parent, name)
	}
	return n.id, nil
}

// Forget implements fuse.RawFileSystem.
func (fs *fileSystem) Forget(id, lookups uint64) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := fs.nodes[id]
	if n == nil || n == fs.root {
		return
	}
	n.lookups -= min(lookups, n.lookups)
	fs.dropUnused(n)
}

// attach notes where n is found.
func (fs *fileSystem) attach(n, parent *node, name string) {
	old := n.parent
	n.parent, n.name = parent, name
	if old == parent {
		return
	}
	parent.children++
	if old != nil {
		old.children--
		fs.dropUnused(old)
	}
}

// dropUnused drops n if the guest has forgotten it and all that is found by it, and the
// directories above it that were there for n alone. So all that the host remembers for the
// guest counts among its nodes.
func (fs *fileSystem) dropUnused(n *node) {
	for n != fs.root && n.lookups == 0 && n.children == 0 && fs.nodes[n.id] == n {
		parent := n.parent
		fs.drop(n)
		if parent == nil {
			return
		}
		parent.children--
		n = parent
	}
}

func (fs *fileSystem) drop(n *node) {
	n.parent = nil
	delete(fs.nodes, n.id)
	delete(fs.byFile, n.key)
	if n.awake != nil {
		fs.awake.Remove(n.awake)
		n.awake = nil
	}
	fs.release(&n.descriptor)
}

// forgetAll takes all but the root away from the guest, which begins anew.
func (fs *fileSystem) forgetAll() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for _, n := range fs.nodes {
		if n != fs.root {
			fs.drop(n)
		}
	}
	fs.root.children = 0
	for id, h := range fs.handles {
		fs.dropHandle(id, h)
	}
}

// close gives up all files.
func (fs *fileSystem) close() error {
	fs.forgetAll()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !fs.closed {
		fs.closed = true
		fs.drop(fs.root)
		for _, fd := range fs.files {
			_ = unix.Close(fd)
		}
	}
	return nil
}
