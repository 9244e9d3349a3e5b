package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/treelist"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// mountShare mounts the share, once, and returns where.
func mountShare(tag string) (string, error) {
	dir := filepath.Join("/mnt", tag)
	if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
		return dir, nil
	}
	if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
		return "", fmt.Errorf("mount the share %s: %w", tag, err)
	}
	return dir, nil
}

// useShare does to a share all that programs do to files, and lists the tree then.
func useShare(tag string) ([]string, error) {
	dir, err := mountShare(tag)
	if err != nil {
		return nil, err
	}
	if err := os.Chdir(dir); err != nil {
		return nil, err
	}
	for _, step := range shareSteps {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	unix.Sync()
	if err := dropCaches(); err != nil {
		return nil, err
	}
	return treelist.List(dir, treelist.Options{})
}

// dropCaches makes the kernel ask for all once more.
func dropCaches() error { return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) }

var shareSteps = []struct {
	name string
	do   func() error
}{
	{"read the host's file", func() error { return content("from-host/hello", []byte("hello\n")) }},
	{"not follow the host's link", func() error {
		// It leads to a file beside the share, which the guest's own tree has not.
		_, err := os.ReadFile("from-host/out")
		return want(err, unix.ENOENT)
	}},
	{"write and read", writeAndRead},
	{"names", names},
	{"attributes", attributes},
	{"another user's files", otherUser},
	{"sizes and holes", holes},
	{"extended attributes", xattrs},
	{"special files", special},
	{"many files", manyFiles},
	{"ways to write", waysToWrite},
	{"deleted files", deleted},
	{"locks", locks},
	{"statfs", func() error {
		var st unix.Statfs_t
		err := unix.Statfs(".", &st)
		if err == nil && (st.Blocks == 0 || st.Namelen != 255) {
			err = fmt.Errorf("%+v", st)
		}
		return err
	}},
}

func want(got, want error) error {
	if !errors.Is(got, want) {
		return fmt.Errorf("want the error %q: %w", want.Error(), cmp.Or(got, errors.New("none came")))
	}
	return nil
}

func content(name string, want []byte) error {
	got, err := os.ReadFile(name)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s has %d bytes, or others than the %d that it should", name, len(got), len(want))
	}
	return err
}

func pattern(n int) []byte {
	b := make([]byte, n)
	proto.Pattern(b, 0)
	return b
}

func writeAndRead() error {
	f, err := os.Create("big")
	if err != nil {
		return err
	}
	defer f.Close()
	big := pattern(3<<20 + 12345)
	for rest := big; len(rest) > 0; {
		n, err := f.Write(rest[:min(len(rest), 1_500_001)])
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := dropCaches(); err != nil {
		return err
	}
	return content("big", big)
}

func names() error {
	long := string(bytes.Repeat([]byte("n"), 255))
	return errors.Join(
		os.MkdirAll("a/b/c", 0o755),
		os.WriteFile("a/one", []byte("1"), 0o644),
		os.WriteFile("a/two", []byte("22"), 0o644),
		os.WriteFile("a/"+long, nil, 0o600),
		want(os.WriteFile("a/"+long+"n", nil, 0o600), unix.ENAMETOOLONG),
		os.Symlink("../a/one", "a/link"),
		content("a/link", []byte("1")),
		os.Link("a/one", "a/b/same"),
		sameFile("a/one", "a/b/same"),
		want(os.Link("a/one", "a/two"), unix.EEXIST),
		unix.Linkat(unix.AT_FDCWD, "a/link", unix.AT_FDCWD, "a/link2", 0),
		os.Rename("a/two", "a/b/three"),
		unix.Renameat2(unix.AT_FDCWD, "a/b/three", unix.AT_FDCWD, "a/one", unix.RENAME_EXCHANGE),
		content("a/one", []byte("22")),
		want(unix.Renameat2(unix.AT_FDCWD, "a/one", unix.AT_FDCWD, "a/b/three", unix.RENAME_NOREPLACE), unix.EEXIST),
		want(os.Remove("a/b"), unix.ENOTEMPTY),
		os.Remove("a/b/c"),
		want(os.Remove("a/b/c"), unix.ENOENT),
	)
}

func sameFile(a, b string) error {
	x, err := os.Stat(a)
	if err != nil {
		return err
	}
	y, err := os.Stat(b)
	if err == nil && !os.SameFile(x, y) {
		err = fmt.Errorf("%s and %s are two files", a, b)
	}
	return err
}

func attributes() error {
	f := "attributes"
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		return err
	}
	err := errors.Join(
		os.Lchown(f, 1234, 4321),
		unix.Chmod(f, 0o6755),
		os.Chtimes(f, time.Unix(-5, 7), time.Unix(1_700_000_000, 123_456_789)),
		os.Symlink("nowhere", "attributes-link"),
		os.Lchown("attributes-link", 5, 6),
	)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(f, &st); err != nil {
		return err
	}
	if st.Uid != 1234 || st.Gid != 4321 || st.Mode != unix.S_IFREG|0o6755 ||
		st.Mtim != unix.NsecToTimespec(1_700_000_000_123_456_789) || st.Atim != (unix.Timespec{Sec: -5, Nsec: 7}) {
		return fmt.Errorf("%+v", st)
	}
	return nil
}

// otherUser makes files as a user who is not root.
func otherUser() error {
	if err := errors.Join(os.Mkdir("theirs", 0o777), unix.Chmod("theirs", 0o1777),
		os.Mkdir("group", 0o777), os.Chown("group", 0, 77), unix.Chmod("group", 0o2777),
		os.WriteFile("secret", []byte("x"), 0o600)); err != nil {
		return err
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its users
		failed <- func() error {
			// The capabilities for files go with the user (capabilities(7)).
			if err := errors.Join(unix.Setfsgid(2000), unix.Setfsuid(1000)); err != nil {
				return err
			}
			_, err := os.ReadFile("secret")
			return errors.Join(
				want(err, unix.EACCES),
				os.WriteFile("theirs/file", nil, 0o640),
				os.Mkdir("theirs/dir", 0o750),
				os.Symlink("x", "theirs/link"),
				unix.Mkfifo("theirs/fifo", 0o600),
				os.Mkdir("group/dir", 0o755),
				os.WriteFile("group/file", nil, 0o644),
				owner("theirs/file", 1000, 2000, 0o640), owner("theirs/dir", 1000, 2000, 0o750),
				owner("theirs/link", 1000, 2000, 0o777), owner("theirs/fifo", 1000, 2000, 0o600),
				owner("group/dir", 1000, 77, 0o2755), owner("group/file", 1000, 77, 0o644),
				want(os.Chown("theirs/file", 0, 0), unix.EPERM),
			)
		}()
	}()
	return <-failed
}

func owner(name string, uid, gid, mode uint32) error {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid || st.Mode&0o7777 != mode {
		return fmt.Errorf("%s has owner %d:%d and mode %o", name, st.Uid, st.Gid, st.Mode)
	}
	return nil
}

func holes() error {
	f, err := os.Create("holes")
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 8 << 20
	if err := errors.Join(f.Truncate(size), writeAt(f, "data", size/2)); err != nil {
		return err
	}
	data, err := f.Seek(0, unix.SEEK_DATA)
	if err != nil {
		return err
	}
	hole, err := f.Seek(data, unix.SEEK_HOLE)
	if err != nil {
		return err
	}
	if data == 0 || data > size/2 || hole <= size/2 || hole == size {
		return fmt.Errorf("data from %d to %d", data, hole)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, size/2, 4096); err != nil {
		return err
	}
	if err := unix.Fallocate(int(f.Fd()), 0, size, 8192); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := f.ReadAt(b, size/2); err != nil || string(b) != "\x00\x00\x00\x00" {
		return fmt.Errorf("the punched hole has %q, %w", b, err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != size+8192 {
		return fmt.Errorf("the file has %d bytes, %w", st.Size(), err)
	}
	return f.Truncate(1000)
}

func writeAt(f *os.File, s string, at int64) error {
	_, err := f.WriteAt([]byte(s), at)
	return err
}

func xattrs() error {
	if err := os.WriteFile("xattrs", nil, 0o644); err != nil {
		return err
	}
	long := pattern(3000)
	err := errors.Join(
		unix.Setxattr("xattrs", "user.one", []byte("1"), 0),
		unix.Setxattr("xattrs", "user.long", long, 0),
		unix.Setxattr("xattrs", "user.gone", nil, 0),
		want(unix.Setxattr("xattrs", "user.one", nil, unix.XATTR_CREATE), unix.EEXIST),
		unix.Removexattr("xattrs", "user.gone"),
		want(unix.Setxattr("xattrs", "trusted.overlay.opaque", []byte("y"), 0), unix.EPERM),
	)
	if err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n, err := unix.Getxattr("xattrs", "user.long", b)
	if err != nil || !bytes.Equal(b[:n], long) {
		return fmt.Errorf("user.long has %d bytes, %w", n, err)
	}
	if _, err := unix.Getxattr("xattrs", "user.long", b[:10]); !errors.Is(err, unix.ERANGE) {
		return fmt.Errorf("a short buffer: %w", err)
	}
	n, err = unix.Listxattr("xattrs", b)
	list := bytes.Split(bytes.TrimSuffix(b[:max(0, n)], []byte{0}), []byte{0})
	slices.SortFunc(list, bytes.Compare)
	if err != nil || string(bytes.Join(list, []byte(" "))) != "user.long user.one" {
		return fmt.Errorf("attributes %q, %w", list, err)
	}
	return nil
}

func special() error {
	if err := errors.Join(unix.Mkfifo("fifo", 0o644), unix.Mknod("null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod("block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300)))); err != nil {
		return err
	}
	// Both ends are the guest's.
	f, err := os.OpenFile("fifo", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("through"); err != nil {
		return err
	}
	b := make([]byte, 7)
	if _, err := io.ReadFull(f, b); err != nil || string(b) != "through" {
		return fmt.Errorf("the FIFO gave %q, %w", b, err)
	}
	return os.WriteFile("null", []byte("away"), 0)
}

func manyFiles() error {
	const count = 1500
	if err := os.Mkdir("many", 0o755); err != nil {
		return err
	}
	for i := range count {
		if err := os.WriteFile(fmt.Sprintf("many/a file with a rather long name %04d", i), []byte(fmt.Sprint(i)), 0o644); err != nil {
			return err
		}
	}
	if err := dropCaches(); err != nil {
		return err
	}
	list, err := os.ReadDir("many")
	if err != nil || len(list) != count {
		return fmt.Errorf("%d files, %w", len(list), err)
	}
	for i, e := range list { // sorted
		if e.Name() != fmt.Sprintf("a file with a rather long name %04d", i) || !e.Type().IsRegular() {
			return fmt.Errorf("file %d is %s", i, e)
		}
		if i%100 != 0 {
			if err := os.Remove("many/" + e.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

func waysToWrite() error {
	a, err := os.OpenFile("ways", os.O_CREATE|os.O_EXCL|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile("ways", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	for i := range 100 {
		if _, err := []*os.File{a, b}[i%2].Write(fmt.Appendf(nil, "%04d", i)); err != nil {
			return err
		}
	}
	// A page that is written through memory goes where it belongs, append or not.
	m, err := unix.Mmap(int(a.Fd()), 0, 400, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "mmap")
	if err := errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m)); err != nil {
		return err
	}
	d, err := os.OpenFile("ways", os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := writeAt(d, "dire", 4); err != nil {
		return err
	}
	c, err := os.Create("copy")
	if err != nil {
		return err
	}
	defer c.Close()
	if n, err := unix.CopyFileRange(int(d.Fd()), new(int64), int(c.Fd()), new(int64), 1<<30, 0); err != nil || n != 400 {
		return fmt.Errorf("%d bytes were copied, %w", n, err)
	}
	var text bytes.Buffer
	text.WriteString("mmapdire")
	for i := 2; i < 100; i++ {
		fmt.Fprintf(&text, "%04d", i)
	}
	return errors.Join(content("ways", text.Bytes()), content("copy", text.Bytes()))
}

func deleted() error {
	f, err := os.Create("deleted")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("still here"); err != nil {
		return err
	}
	if err := os.Remove("deleted"); err != nil {
		return err
	}
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if !errors.Is(err, io.EOF) || string(b[:n]) != "still here" {
		return fmt.Errorf("a deleted file has %q, %w", b[:n], err)
	}
	return f.Truncate(3)
}

func locks() error {
	a, err := os.Create("lock")
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open("lock")
	if err != nil {
		return err
	}
	defer b.Close()
	return errors.Join(unix.Flock(int(a.Fd()), unix.LOCK_EX),
		want(unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK))
}

// tryReadOnly checks that nothing changes in a read-only share, which the guest's
// own kernel takes for writable.
func tryReadOnly(tag string) error {
	dir, err := mountShare(tag)
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	return errors.Join(
		content("hello", []byte("hello\n")),
		want(os.WriteFile("hello", []byte("x"), 0), unix.EROFS),
		want(os.WriteFile("new", nil, 0o644), unix.EROFS),
		want(os.Mkdir("dir", 0o755), unix.EROFS),
		want(os.Symlink("x", "link"), unix.EROFS),
		want(os.Link("hello", "link"), unix.EROFS),
		want(os.Rename("hello", "other"), unix.EROFS),
		want(os.Remove("hello"), unix.EROFS),
		want(os.Chmod("hello", 0o777), unix.EROFS),
		want(os.Chown("hello", 1, 1), unix.EROFS),
		want(os.Truncate("hello", 0), unix.EROFS),
		want(unix.Setxattr("hello", "user.x", nil, 0), unix.EROFS),
		want(unix.Mkfifo("fifo", 0o644), unix.EROFS),
	)
}
