package ext4

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// observed is all that can be seen of one file.
type observed struct {
	Type         string // as find's %y: f d l c b p s
	Perm         uint32
	UID, GID     uint32
	Nlink        uint32
	Size         int64 // of a directory: zero
	Mtime        time.Time
	Atime        time.Time
	Ctime        time.Time
	Major, Minor uint32
	Target       string
	Sum          string
	Data         [][2]int64 // where no hole is, at most maxObservedData
	Xattrs       map[string]string
	Ino          uint32
}

func (o observed) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %04o %d:%d n%d", o.Type, o.Perm, o.UID, o.GID, o.Nlink)
	switch o.Type {
	case "f":
		fmt.Fprintf(&b, " size %d sum %s", o.Size, o.Sum)
	case "l":
		fmt.Fprintf(&b, " -> %q", o.Target)
	case "c", "b":
		fmt.Fprintf(&b, " dev %d:%d", o.Major, o.Minor)
	}
	fmt.Fprintf(&b, " m%s a%s c%s", stamp(o.Mtime), stamp(o.Atime), stamp(o.Ctime))
	for _, k := range slices.Sorted(maps.Keys(o.Xattrs)) {
		fmt.Fprintf(&b, " %s=%x", k, o.Xattrs[k])
	}
	return b.String()
}

func stamp(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

func sum(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), err
}

func sumString(s string) string {
	out, _ := sum(strings.NewReader(s))
	return out
}

const maxObservedData = 1000

// observeData lists what next finds: where data is from an offset on, io.EOF at last.
func observeData(next func(off int64) (start, end int64, err error)) (list [][2]int64, err error) {
	for off := int64(0); len(list) < maxObservedData; {
		start, end, err := next(off)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		if start < off || end <= start {
			return nil, fmt.Errorf("data from %d to %d, looked for from %d on", start, end, off)
		}
		list = append(list, [2]int64{start, end})
		off = end
	}
	return list, nil
}

var typeLetters = map[uint32]string{modeRegular: "f", modeDir: "d", modeSymlink: "l", modeChar: "c", modeBlock: "b", modeFIFO: "p", modeSocket: "s"}

// openImage opens an image with the reader.
func openImage(t testing.TB, path string) *FS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// observeReader walks an image with the reader, from dir on.
func observeReader(t testing.TB, fsys *FS, dir string) map[string]observed {
	t.Helper()
	out := map[string]observed{}
	err := fs.WalkDir(fsys, dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := fsys.Lstat(path)
		if err != nil {
			return err
		}
		if d.Type() != info.Mode().Type() {
			return fmt.Errorf("%s: entry of type %v for a file of type %v", path, d.Type(), info.Mode().Type())
		}
		st := info.Sys().(*Stat)
		o := observed{
			Type: typeLetters[st.Mode&modeFmt], Perm: st.Mode & modePerm, UID: st.UID, GID: st.GID, Nlink: st.Nlink,
			Mtime: st.Mtime, Atime: st.Atime, Ctime: st.Ctime, Major: st.Major, Minor: st.Minor, Ino: st.Ino,
		}
		switch o.Type {
		case "f":
			o.Size = st.Size
			f, err := fsys.Open(path)
			if err != nil {
				return err
			}
			o.Data, err = observeData(f.(*openRegular).Data)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			o.Sum, err = sum(f)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		case "l":
			o.Size = st.Size
			if o.Target, err = fsys.ReadLink(path); err != nil {
				return err
			}
		}
		x, err := fsys.Xattrs(path)
		if err != nil {
			return err
		}
		for k, v := range x {
			if o.Xattrs == nil {
				o.Xattrs = map[string]string{}
			}
			o.Xattrs[k] = string(v)
		}
		if dir != "." {
			path = strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		} else if path == "." {
			path = ""
		}
		out[path] = o
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// diffObserved fails the test for each difference.
func diffObserved(t testing.TB, gotName string, got map[string]observed, wantName string, want map[string]observed) {
	t.Helper()
	n := 0
	complain := func(format string, args ...any) {
		if n++; n <= 10 {
			t.Errorf(format, args...)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[path]
		if !ok {
			complain("%s lacks %q", gotName, path)
		} else if a, b := g.String(), want[path].String(); a != b {
			complain("%q:\n%s: %s\n%s: %s", path, gotName, a, wantName, b)
		} else if a, b := g.Data, want[path].Data; !slices.Equal(a, b) {
			complain("%q: %s has data at %v, %s at %v", path, gotName, a, wantName, b)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			complain("%s has %q, %s has not", gotName, path, wantName)
		}
	}
}
