package sparsetar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWriteHeader(t *testing.T) {
	many := make([]Fragment, 2000)
	for i := range many {
		many[i] = Fragment{int64(i) * 4096, 512}
	}
	tests := []struct {
		name string
		size int64
		list []Fragment
	}{
		{"one byte far out", 1 << 33, []Fragment{{1 << 32, 1}}},
		{"a hole at the end", 1 << 20, []Fragment{{0, 700}}},
		{"two", 10_000, []Fragment{{100, 512}, {9000, 1000}}},
		{"only a hole", 1 << 30, nil},
		{"a map of many blocks", 2000 * 4096, many},
	}
	xattr := map[string]string{"SCHILY.xattr.user.gnu.sparse.": "gnu.sparse.name=x\n18 gnu.sparse.name=y\n"}
	long := "d/" + strings.Repeat("n", 200) + "/é\xff"
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			hdr := tar.Header{
				Typeflag: tar.TypeReg, Name: long, Size: tt.size, Mode: 0o4751, Uid: 1 << 22, ModTime: time.Unix(-3, 5), PAXRecords: xattr,
			}
			if err := WriteHeader(&b, &hdr, tt.list); err != nil {
				t.Fatal(err)
			}
			data := bytes.Repeat([]byte("data"), 300_000)[:stored(tt.list)]
			b.Write(data)
			b.Write(make([]byte, Padding(tt.list)))
			tw := tar.NewWriter(&b)
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "next"}); err != nil {
				t.Fatal(err)
			}
			if err := tw.Close(); err != nil {
				t.Fatal(err)
			}

			r := NewReader(bytes.NewReader(b.Bytes()))
			got, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != long || got.Size != tt.size || got.Mode != hdr.Mode || got.Uid != hdr.Uid || !got.ModTime.Equal(hdr.ModTime) {
				t.Errorf("got %+v", got)
			}
			for k, v := range xattr {
				if got.PAXRecords[k] != v {
					t.Errorf("record %q is %q", k, got.PAXRecords[k])
				}
			}
			if list, sparse := r.Fragments(); !sparse || !slices.Equal(list, tt.list) {
				t.Errorf("sparse %v, fragments %v", sparse, list)
			}
			if c, err := io.ReadAll(r); err != nil || !bytes.Equal(c, data) {
				t.Errorf("%d bytes of data, %v", len(c), err)
			}
			if got, err := r.Next(); err != nil || got.Name != "next" {
				t.Errorf("then %+v, %v", got, err)
			}
		})
	}
	if len(xattr) != 1 {
		t.Errorf("the caller's records were changed: %q", xattr)
	}
}

func TestWriteHeaderRefuses(t *testing.T) {
	tooMany := make([]Fragment, maxSpecialSize/4)
	for i := range tooMany {
		tooMany[i] = Fragment{int64(i) * 1024, 512}
	}
	for name, list := range map[string][]Fragment{
		"beyond the end": {{99, 2}}, "out of order": {{50, 1}, {10, 1}}, "a part of a block before the end": {{0, 1}, {50, 1}}, "a map that is too long": tooMany,
	} {
		size := int64(100)
		if len(list) > 2 {
			size = 1 << 40
		}
		var b bytes.Buffer
		err := WriteHeader(&b, &tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: size}, list)
		if !errors.Is(err, tar.ErrHeader) || b.Len() > 0 {
			t.Errorf("%s: error %v, %d bytes written", name, err, b.Len())
		}
	}
}

// TestGNUTarReadsIt has GNU tar, whose format it is, unpack what WriteHeader writes.
func TestGNUTarReadsIt(t *testing.T) {
	gnu, err := exec.LookPath("tar")
	if err != nil {
		t.Fatal(err)
	}
	list := []Fragment{{4096, 512}, {1 << 20, 4}}
	var b bytes.Buffer
	if err := WriteHeader(&b, &tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Size: 2 << 20, Mode: 0o644}, list); err != nil {
		t.Fatal(err)
	}
	b.WriteString(strings.Repeat("ab", 256) + "wxyz")
	b.Write(make([]byte, Padding(list)+2*blockSize))
	dir := t.TempDir()
	cmd := exec.Command(gnu, "-xf", "-", "-C", dir)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "d/f"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 2<<20)
	copy(want[4096:], strings.Repeat("ab", 256))
	copy(want[1<<20:], "wxyz")
	if !bytes.Equal(got, want) {
		t.Error("GNU tar unpacked another file")
	}
}
