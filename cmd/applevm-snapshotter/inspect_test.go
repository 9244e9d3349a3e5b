package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// convertLayer makes the image of a layer with the program itself.
func convertLayer(t *testing.T, entries ...tartest.Entry) (image string) {
	t.Helper()
	image = filepath.Join(t.TempDir(), "layer.ext4")
	if _, err := output(t, "convert", write(t, "layer.tar", tartest.Tar(t, entries...)), image); err != nil {
		t.Fatal(err)
	}
	return image
}

func TestInspectLayer(t *testing.T) {
	setuid := tartest.File("bin/su", "12345")
	setuid.Mode = 0o4755
	setuid.Uid, setuid.Gid = 1000, 70000
	setuid.PAXRecords = map[string]string{"SCHILY.xattr.user.b": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	link := tartest.NewEntry(tar.TypeSymlink, "link", 0o777)
	link.Linkname = "bin/su"
	null := tartest.NewEntry(tar.TypeChar, "null", 0o666)
	null.Devmajor, null.Devminor = 1, 3
	tmp := tartest.Dir("tmp")
	tmp.Mode = 0o1777
	image := convertLayer(t, setuid, link, null, tmp, tartest.NewEntry(tar.TypeFifo, "pipe", 0o6600), tartest.File("gone/.wh.x", ""))

	out, err := output(t, "inspect", image)
	if err != nil {
		t.Fatal(err)
	}
	info, tree, _ := strings.Cut(out, "\n\n")
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`^UUID      [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\n`,
		`\nfeatures  ext_attr dir_index .* metadata_csum read-only\n`,
		fmt.Sprintf(`\nblocks    %d of 4096 bytes: \d+ used, \d+ free\n`, st.Size()/4096),
		`\ninodes    \d+: \d+ used, \d+ free\n`,
		fmt.Sprintf(`\nsize      %d bytes \(.*\)\n`, st.Size()),
		fmt.Sprintf(`\nallocated %d bytes \(.*\)$`, allocated(st)),
	} {
		if !regexp.MustCompile(want).MatchString(info) {
			t.Errorf("no %q in\n%s", want, info)
		}
	}
	// What the layer does not say of a directory is not this test's business.
	tree = regexp.MustCompile(`(?m)^.* (\.|lost\+found|root|root/bin|root/gone)\n`).ReplaceAllString(tree, "$1\n")
	const want = `.
lost+found
root
root/bin
root/gone
lrwxrwxrwx         0:0          6 2023-11-14T22:13:20Z root/link -> bin/su
crw-rw-rw-         0:0        1:3 2023-11-14T22:13:20Z root/null
prwS--S---         0:0          0 2023-11-14T22:13:20Z root/pipe
drwxrwxrwt         0:0       4096 2023-11-14T22:13:20Z root/tmp
-rwsr-xr-x  1000:70000          5 2023-11-14T22:13:20Z root/bin/su [security.capability user.b]
c---------         0:0        0:0 1970-01-01T00:00:00Z root/gone/x
`
	if tree != want {
		t.Errorf("got\n%s\nwant\n%s", tree, want)
	}

	for _, args := range [][]string{{"-tree=false", image}, {image, "-tree=false"}} {
		if out, err := output(t, append([]string{"inspect"}, args...)...); err != nil || out != info+"\n" {
			t.Errorf("inspect %q: %v\n%s", args, err, out)
		}
	}
}

// TestInspectIsSafeForTerminals lists names made to confuse.
func TestInspectIsSafeForTerminals(t *testing.T) {
	link := tartest.NewEntry(tar.TypeSymlink, "l", 0o777)
	link.Linkname = "\x1b]0;title\x07"
	attr := tartest.File("attr", "")
	attr.PAXRecords = map[string]string{"SCHILY.xattr.user.\x1b[2J": "1"}
	strange := []string{"\x1b[2Jred", "new\nline", "a -> b", "\xff\xfe", "right\u202eleft", `quo"te`, "ä", "c1\u009b31m"}
	entries := []tartest.Entry{link, attr}
	for _, name := range strange {
		entries = append(entries, tartest.File(name, ""))
	}
	out, err := output(t, "inspect", convertLayer(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(out) {
		for _, r := range strings.TrimSuffix(l, "\n") {
			if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
				t.Errorf("%q in %q", r, l)
			}
		}
	}
	for _, want := range []string{
		`"root/\x1b[2Jred"`, `"root/new\nline"`, `"root/a -> b"`, `"root/\xff\xfe"`, `"root/right\u202eleft"`, `"root/quo\"te"`, "root/ä",
		`root/l -> "\x1b]0;title\a"`, `root/attr ["user.\x1b[2J"]`, `"root/c1\u009b31m"`,
	} {
		if strings.Count(out, " "+want+"\n") != 1 {
			t.Errorf("no line ends with %s in\n%s", want, out)
		}
	}
}

func TestInspectWritableImage(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "rw.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := ext4.CreateEmpty(f, 1<<30, ext4.EmptyOptions{UUID: [16]byte{0xab, 15: 1}}); err != nil {
		t.Fatal(err)
	}
	out, err := output(t, "inspect", f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"UUID      ab000000-0000-0000-0000-000000000001\n", "has_journal", "size      1073741824 bytes (1GiB)\n", "lost+found\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(dir, "none"), "no such file"},
		{dir, "neither a regular file nor a disk"},
		{"/dev/null", "neither a regular file nor a disk"},
		{write(t, "empty", nil), "outside the image"},
		{write(t, "zeros", make([]byte, 1<<20)), "no ext4 superblock"},
		{write(t, "line\nend", make([]byte, 1<<20)), `line\nend`},
	} {
		out, err := output(t, "inspect", tt.path)
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), line(tt.path)) || out != "" {
			t.Errorf("inspect %s: %v and the output %q, want an error with %q", tt.path, err, out, tt.want)
		}
	}
}

// TestInspectShowsWhatIsDamaged damages a directory's block.
func TestInspectShowsWhatIsDamaged(t *testing.T) {
	image := convertLayer(t, tartest.File("dir/entry", ""), tartest.File("good", ""))
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte("\x05\x01entry"))+2] = 'E'
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := output(t, "inspect", image)
	if err == nil || !strings.Contains(err.Error(), "1 of 6 names cannot be read") || !strings.Contains(err.Error(), image) {
		t.Errorf("got %v", err)
	}
	if !regexp.MustCompile(`(?m)^\? +root/dir: .*wrong checksum`).MatchString(out) || !strings.Contains(out, " root/good\n") {
		t.Errorf("got\n%s", out)
	}
}

func TestInspectListsNoMoreThanItsLimit(t *testing.T) {
	fsys := readImage(t, convertLayer(t, tartest.File("a", ""), tartest.File("b", ""), tartest.File("c", "")))
	for _, tt := range []struct {
		limit, lines int
		err          string
	}{{6, 6, ""}, {5, 5, "more than 5 names"}} {
		var out strings.Builder
		w := bufio.NewWriter(&out)
		err := writeTree(t.Context(), w, fsys.Walk(), tt.limit)
		if ferr := w.Flush(); ferr != nil {
			t.Fatal(ferr)
		}
		if got := strings.Count(out.String(), "\n"); got != tt.lines || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("limit %d: %d lines, %v", tt.limit, got, err)
		}
	}
	if err := writeTree(t.Context(), bufio.NewWriterSize(brokenWriter{}, 16), fsys.Walk(), 10); err == nil {
		t.Error("no error of a writer that fails")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
