package plan

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/vmm"
)

func TestBlockVolumes(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(filepath.Join(dir, name), append(make([]byte, ext4MagicAt), 0x53, 0xEF), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(name, dest string, options ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: "ext4", Source: filepath.Join(dir, name), Options: options}
	}
	plan := func(list ...specs.Mount) (*Plan, error) {
		return New(input(t, func(s *specs.Spec) { s.Mounts = list }))
	}
	before, err := plan()
	if err != nil {
		t.Fatal(err)
	}
	p, err := plan(mount("a", "/x", "rw"), mount("b", "/y", "ro", "nosuid"), mount("./a", "/z"))
	if err != nil {
		t.Fatal(err)
	}
	want := []vmm.Disk{{ID: "volume-0", Path: filepath.Join(dir, "a")}, {ID: "volume-1", Path: filepath.Join(dir, "b"), ReadOnly: true}}
	if got := p.Machine.Disks[len(before.Machine.Disks):]; !reflect.DeepEqual(got, want) {
		t.Errorf("disks %+v, want %+v", got, want)
	}
	var sources []string
	for _, m := range guestSpecOf(t, p).Mounts {
		sources = append(sources, m.Source)
	}
	if got := strings.Join(sources, " "); got != "volume-0 volume-1:ro volume-0" {
		t.Errorf("mounts of %s", got)
	}
	if _, err := plan(mount("a", "/x", "rw"), mount("a", "/y", "ro")); err == nil || !strings.Contains(err.Error(), "is mounted read-only and writable") {
		t.Errorf("both ways: %v", err)
	}
}
