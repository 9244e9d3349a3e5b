package e2e

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/images"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Every file of the Debian image is in the container as its layer says: type,
// mode, owner, size, time, link target and content.
func TestContainerShowsTheLayersFiles(t *testing.T) {
	s := userStack(t)
	archive, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := layerFiles(t, archive)
	// Without a network it gets no files of ours in /etc.
	out := must(t, s.CtrRun(t.Context(), "--rm", "--annotation", "dev.applevm.network=none", img, name(t), "sh", "-c",
		`find / -xdev ! -path '/proc*' ! -path '/sys*' ! -path '/dev*' ! -path '/run*' -printf '%y %m %U %G %s %Ts %n %p -> %l\n' && `+
			`echo == && find / -xdev -type f ! -path '/proc/*' ! -path '/sys/*' ! -path '/dev/*' ! -path '/run/*' -print0 | xargs -0 sha256sum`))
	listing, sums, _ := strings.Cut(out, "==\n")
	got := map[string]string{}
	for line := range strings.Lines(listing) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 8)
		p, target, _ := strings.Cut(f[7], " -> ")
		size := f[4]
		if f[0] == "d" {
			size = "-" // a directory's own size is the file system's affair
		}
		links := f[6]
		if f[0] == "d" {
			links = "-"
		}
		got[p] = strings.Join([]string{f[0], f[1], f[2], f[3], size, f[5], links, target}, " ")
	}
	hashes := map[string]string{}
	for line := range strings.Lines(sums) {
		sum, p, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		hashes[p] = sum
	}
	if len(want) < 3000 {
		t.Fatalf("the layer has only %d files", len(want))
	}
	differ := 0
	for _, p := range slices.Sorted(maps.Keys(want)) {
		w := want[p]
		g, ok := got[p]
		if p == "/" {
			// The overlay's root is its writable directory, made at the start: the
			// layer gives it mode and owner, not its time.
			g, w.attrs = withoutTime(g), withoutTime(w.attrs)
		}
		if !ok || g != w.attrs {
			differ++
			t.Errorf("%s: got %q, want %q", p, g, w.attrs)
		}
		if w.sum != "" && hashes[p] != w.sum {
			differ++
			t.Errorf("%s: content differs", p)
		}
		delete(got, p)
		if differ > 20 {
			t.Fatal("and more")
		}
	}
	for p := range got {
		t.Errorf("%s is in the container, not in the layer", p)
	}
}

type layerFile struct{ attrs, sum string }

// layerFiles reads what find and sha256sum must show, from the archive's one layer.
func layerFiles(t *testing.T, archive string) map[string]layerFile {
	t.Helper()
	image, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, error %v", len(layers), err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	z, err := gzip.NewReader(rc)
	if err != nil {
		t.Fatal(err)
	}
	headers, sums, links := map[string]*tar.Header{}, map[string]string{}, map[string]int{}
	hardlink := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF { //nolint:errorlint // archive/tar returns it bare
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		p := path.Clean("/" + h.Name)
		if h.Typeflag == tar.TypeLink {
			hardlink[p] = path.Clean("/" + h.Linkname)
			continue
		}
		headers[p] = h
		links[p] = 1
		if h.Typeflag == tar.TypeReg {
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				t.Fatal(err)
			}
			sums[p] = fmt.Sprintf("%x", sum.Sum(nil))
		}
	}
	for _, target := range hardlink {
		links[target]++
	}
	files := map[string]layerFile{}
	add := func(p, of string) {
		for _, skip := range []string{"/proc", "/sys", "/dev", "/run"} {
			if p == skip || strings.HasPrefix(p, skip+"/") {
				return
			}
		}
		h := headers[of]
		typ, size, n := "f", fmt.Sprint(h.Size), fmt.Sprint(links[of])
		switch h.Typeflag {
		case tar.TypeDir:
			typ, size, n = "d", "-", "-"
		case tar.TypeSymlink:
			typ, size = "l", fmt.Sprint(len(h.Linkname))
		case tar.TypeChar:
			typ = "c"
		}
		files[p] = layerFile{
			attrs: fmt.Sprintf("%s %o %d %d %s %d %s %s", typ, h.Mode&0o7777, h.Uid, h.Gid, size, h.ModTime.Unix(), n, h.Linkname),
			sum:   sums[of],
		}
	}
	for p := range headers {
		add(p, p)
	}
	for p, target := range hardlink {
		add(p, target)
	}
	return files
}

// withoutTime takes the modification time out of a file's attributes.
func withoutTime(attrs string) string {
	f := strings.Fields(attrs)
	return strings.Join(slices.Delete(f, min(5, len(f)), min(6, len(f))), " ")
}

// The longest image that there may be runs, and shows what its layers make up.
func TestImageOf127Layers(t *testing.T) {
	s := userStack(t)
	base, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var layers []string
	for i := 2; i <= 127; i++ {
		path := filepath.Join(dir, fmt.Sprint("layer", i))
		files := []images.File{{Name: fmt.Sprintf("l/%03d", i), Mode: 0o644, Content: fmt.Append(nil, i)}, {Name: "last", Mode: 0o644, Content: fmt.Append(nil, i)}}
		if i%2 == 1 { // the file of the layer below is removed
			files = append(files, images.File{Name: fmt.Sprintf("l/.wh.%03d", i-1), Mode: 0o644})
		}
		if err := images.Layer(path, files...); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, path)
	}
	const ref = "docker.io/library/debian:127"
	archive, err := images.WithLayers(base, ref, dir, layers...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := 3; i <= 127; i += 2 {
		fmt.Fprintf(&want, "%03d\n", i)
	}
	want.WriteString("127")
	if got := must(t, s.CtrRun(t.Context(), "--rm", ref, name(t), "sh", "-c", "ls /l; cat /last")); got != want.String() {
		t.Errorf("got %q\nwant %q", got, want.String())
	}
	clean(t, s)
}
