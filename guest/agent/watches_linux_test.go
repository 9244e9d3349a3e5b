package agent

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// What Linux 6.1 writes (fs/notify/fdinfo.c).
func TestReadWatches(t *testing.T) {
	const info = `pos:	0
flags:	02004000
mnt_id:	15
ino:	1057
inotify wd:3 ino:9 sdev:2e mask:fce ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:000000000a00000000000000
inotify wd:2 ino:8 sdev:800001 mask:fce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0a00000000000000
inotify wd:1 ino:1 sdev:12345 mask:2 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:01000000020000000000000
inotify wd:1 ino:1 sdev:12345 mask:2 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:010000000200000000000000
inotify
`
	type file struct{ device, node uint64 }
	var got []file
	readWatches(strings.NewReader(info), func(device, node uint64) { got = append(got, file{device, node}) })
	want := []file{{unix.Mkdev(0, 0x2e), 10}, {unix.Mkdev(0, 0x12345), 1<<32 + 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if h := nodeHandle(1<<32 + 2); h.Type() != handleType || string(h.Bytes()) != "\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("handle %x of type %#x", h.Bytes(), h.Type())
	}
}

// A process's watches are found, and only those on the file systems that are asked for.
func TestWatchedFiles(t *testing.T) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.InotifyAddWatch(fd, t.TempDir(), unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	// No FUSE file system's handles are here.
	got, err := watchedFiles("/proc", map[uint64]string{1: "m0"}, nobodys)
	if err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	proc := t.TempDir()
	self := proc + "/" + strconv.Itoa(os.Getpid())
	for _, err := range []error{
		os.MkdirAll(self+"/fd", 0o755), os.MkdirAll(self+"/fdinfo", 0o755), os.MkdirAll(proc+"/sys/fd", 0o755),
		os.Symlink("anon_inode:inotify", self+"/fd/7"), os.Symlink("/dev/null", self+"/fd/8"), os.Symlink("anon_inode:inotify", self+"/fd/9"),
		os.WriteFile(self+"/fdinfo/7", []byte("inotify wd:3 sdev:2e fhandle-type:81 f_handle:000000000a00000000000000\ninotify wd:3 sdev:2f fhandle-type:81 f_handle:000000000b00000000000000\n"), 0o644),
		os.WriteFile(self+"/fdinfo/8", []byte("inotify wd:3 sdev:2e fhandle-type:81 f_handle:000000000c00000000000000\n"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err = watchedFiles(proc, map[uint64]string{unix.Mkdev(0, 0x2e): "m0", unix.Mkdev(0, 0x99): "m1"}, nobodys)
	if err != nil || len(got) != 1 || !maps.Equal(got["m0"], map[uint64]bool{10: true}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestWatchesAreBounded(t *testing.T) {
	many := map[uint64]bool{}
	for i := range uint64(api.MaxWatches) {
		many[i] = true
	}
	respond := func(files map[string]map[uint64]bool) *guestv1.WaitWatchesResponse {
		r, err := watchesResponse(files)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := respond(map[string]map[uint64]bool{"m0": {5: true, 3: true}, "m1": many})
	if len(r.Shares) != 2 || !slices.Equal(r.Shares[0].Files, []uint64{3, 5}) || len(r.Shares[1].Files) != api.MaxWatches-2 || !r.Cut {
		t.Errorf("%d shares, cut: %v", len(r.Shares), r.Cut)
	}
	if again := respond(map[string]map[uint64]bool{"m0": {3: true, 5: true}, "m1": many}); again.Digest != r.Digest {
		t.Errorf("digests %s and %s of the same", again.Digest, r.Digest)
	}
	if other := respond(map[string]map[uint64]bool{"m0": {3: true}}); other.Digest == r.Digest || other.Cut {
		t.Errorf("%v", other)
	}
}

// The host says what to do, but not where.
func TestRaiseIsRefused(t *testing.T) {
	dir := t.TempDir()
	c := &container{id: "c", shares: []share{{tag: "m0", path: dir}}, appeared: make(chan struct{}, 1), watches: newPathWatches()}
	if err := c.raiseFileEvents(&guestv1.RaiseFileEventsRequest{Share: "m1"}); err == nil || !strings.Contains(err.Error(), `container "c" has no share "m1"`) {
		t.Error(err)
	}
	if err := c.raiseFileEvents(&guestv1.RaiseFileEventsRequest{Share: "m0", Events: make([]*guestv1.FileEvent, api.MaxFileEvents+1)}); err == nil {
		t.Error("too many events are taken")
	}
	for _, name := range []string{"..", ".", "a/b", "a\x00", strings.Repeat("n", 256)} {
		if err := raise(-1, 1, &guestv1.FileEvent{Name: []byte(name)}); err == nil || !strings.Contains(err.Error(), "is no name of a file") {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	// Whatever is done in another's name, this thread's is its own after it.
	err := asGroup(12345, func() error {
		if g, err := unix.SetfsgidRetGid(-1); err != nil || g != 12345 {
			t.Errorf("group %d, %v", g, err)
		}
		return os.ErrInvalid
	})
	if g, gerr := unix.SetfsgidRetGid(-1); err != os.ErrInvalid || gerr != nil || g == 12345 { //nolint:errorlint // it is the same
		t.Errorf("%v; group %d, %v", err, g, gerr)
	}
}

func nobodys(string) bool { return false }
