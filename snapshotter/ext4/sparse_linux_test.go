package ext4

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestSparseTars converts what GNU tar makes of a sparse file, in each of its
// formats.
func TestSparseTars(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(30) { // more pieces than a header holds
		if _, err := f.WriteAt([]byte{byte(i + 1), 2, 3}, i*3<<20+i*100); err != nil {
			t.Fatal(err)
		}
	}
	const size = 100<<20 + 7
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	want, err := sum(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()

	for name, args := range map[string][]string{
		"GNU":     {"--format=gnu"},
		"PAX 0.0": {"--format=pax", "--sparse-version=0.0"},
		"PAX 0.1": {"--format=pax", "--sparse-version=0.1"},
		"PAX 1.0": {"--format=pax", "--sparse-version=1.0"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := exec.Command("tar", append(args, "-S", "-C", dir, "-c", "sparse")...).Output()
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > 1<<20 {
				t.Fatalf("the tar is not sparse: %d bytes", len(b))
			}
			image, stats := convert(t, b)
			if stats.Used > 1<<20 {
				t.Errorf("%d bytes used", stats.Used)
			}
			if o := observeBoth(t, image)["sparse"]; o.Size != size || o.Sum != want {
				t.Errorf("size %d sum %s, want %d %s", o.Size, o.Sum, size, want)
			}
			if _, _, err := tryConvert(t, b, LayerOptions{MaxBytes: 50 << 20}); !errors.Is(err, errdefs.ErrResourceExhausted) {
				t.Errorf("holes beyond MaxBytes: %v", err)
			}
		})
	}
}
