package vz

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/vmm"
)

func config(t *testing.T) vmm.Config {
	return vmm.Config{
		Name: "default/web", Dir: shortdir.New(t), CPUs: 2, Memory: 512 << 20, Kernel: "/k", Initrd: "/i", Cmdline: []string{"quiet"},
		Disks: []vmm.Disk{{ID: "layer0", Path: "/layer", ReadOnly: true}},
	}
}

func TestPlan(t *testing.T) {
	cfg := config(t)
	cfg.Shares = []vmm.Share{{Tag: "data", Path: "/data", ReadOnly: true}, {Tag: "files", Files: []string{"/etc/hosts"}}}
	p, err := newPlan(cfg, "arm64")
	if err != nil {
		t.Fatal(err)
	}
	if p.cmdline != "console=hvc0 quiet" {
		t.Errorf("command line %q", p.cmdline)
	}
	if s := p.shares[0]; s.tag != "data" || s.dir != "/data" || !s.readOnly || s.links != nil {
		t.Errorf("%+v", s)
	}
	if s := p.shares[1]; s.dir != filepath.Join(cfg.Dir, "files1") || len(s.links) != 1 {
		t.Errorf("%+v", s)
	}
	if got := mtu(vmm.NIC{MTU: 1280}); got != minMTU {
		t.Errorf("MTU %d", got)
	}
}

func TestPlanErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*vmm.Config)
		want   string
	}{
		"other architecture": {func(c *vmm.Config) { c.Arch = "amd64" }, "use an image for linux/arm64"},
		"no CPU":             {func(c *vmm.Config) { c.CPUs = 0 }, "0 CPUs"},
		"odd memory":         {func(c *vmm.Config) { c.Memory++ }, "not a multiple"},
		"relative":           {func(c *vmm.Config) { c.Dir = "d" }, "not absolute"},
		"no kernel":          {func(c *vmm.Config) { c.Kernel = "" }, "no kernel"},
		"namespace":          {func(c *vmm.Config) { c.NetNS = os.Stdin }, "network namespaces"},
		"long ID":            {func(c *vmm.Config) { c.Disks[0].ID = strings.Repeat("d", 21) }, `"ddddddddddddddddddddd" is not 1 to 20 characters`},
		"disk twice":         {func(c *vmm.Config) { c.Disks = append(c.Disks, c.Disks[0]) }, `two disks are called "layer0"`},
		"tap": {func(c *vmm.Config) {
			c.NICs = []vmm.NIC{{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, File: os.Stdin, Tap: true}}
		}, "no tap devices"},
		"empty share": {func(c *vmm.Config) { c.Shares = []vmm.Share{{Tag: "t"}} }, "a directory or files"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			tt.change(&cfg)
			if _, err := newPlan(cfg, "arm64"); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "default/web") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A file is shared alone, live in both directions, and is there when the link is gone.
func TestLinks(t *testing.T) {
	cfg := config(t)
	dir := shortdir.New(t)
	file := filepath.Join(dir, "hosts")
	for _, name := range []string{file, filepath.Join(dir, "sibling")} {
		if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Shares = []vmm.Share{{Tag: "files", Files: []string{file}}}
	p, err := newPlan(cfg, "arm64")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.makeLinks(); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(p.shares[0].dir)
	if err != nil || len(names) != 1 || names[0].Name() != "0" {
		t.Errorf("%v, %v", names, err)
	}
	for from, to := range map[string]string{file: filepath.Join(p.shares[0].dir, "0"), filepath.Join(p.shares[0].dir, "0"): file} {
		if err := os.WriteFile(from, []byte(from), 0o644); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(to); err != nil || string(b) != from {
			t.Errorf("%s: %q, %v", to, b, err)
		}
	}
	if err := p.removeLinks(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(cfg.Dir); len(left) > 0 {
		t.Errorf("left in the directory: %v", left)
	}
	cfg.Shares[0].Files = []string{filepath.Join(dir, "nosuch")}
	if p, err = newPlan(cfg, "arm64"); err != nil {
		t.Fatal(err)
	}
	if err := p.makeLinks(); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("a file that is not there: %v", err)
	}
}
