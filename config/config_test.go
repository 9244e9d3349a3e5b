package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLoad(t *testing.T) {
	tests := []struct {
		name, file string
		check      func(Config) bool
		err        string
	}{
		{"empty keeps the defaults", "", func(c Config) bool { return c == Default() }, ""},
		{"one field", "[machine]\nboot_timeout = \"5s\"\n", func(c Config) bool {
			return c.Machine.BootTimeout == Duration(5*time.Second) && c.Machine.MemoryMiB == Default().Machine.MemoryMiB
		}, ""},
		{"unknown field", "[machine]\nmemory = 5\n", nil, "unknown setting"},
		{"unknown driver", "[machine]\ndriver = \"xen\"\n", nil, "machine.driver"},
		{"too little memory", "[machine]\nmemory_mib = 1\n", nil, "at least 128"},
		{"bad accelerator", "[qemu]\naccel = \"fast\"\n", nil, "qemu.accel"},
		{"not TOML", "[machine", nil, "config.toml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv(Env, path)
			c, err := Load("")
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || !tt.check(c) {
				t.Errorf("got %+v, error %v", c, err)
			}
		})
	}
}

func TestLoadReadsWhatWriteWrites(t *testing.T) {
	strange := Config{
		Guest:       Guest{Dir: `/a "b"/'c'\\d`},
		Machine:     Machine{Driver: "vz", CPUs: 3, MemoryMiB: 1 << 20, BootTimeout: Duration(90*time.Minute + 1)},
		Network:     Network{Default: "none", Subnet: netip.MustParsePrefix("10.0.0.0/8"), MTU: 1280, HostLoopback: true, MaxConnections: 1, MaxUDPFlows: 2},
		QEMU:        QEMU{Binary: "#x = 1", Accel: "tcg", CacheDir: "tab\tline\nä"},
		Snapshotter: Snapshotter{Root: "[x]", Address: "s", ContainerdAddress: "c", WritableSizeGiB: 7, MaxLayers: 3},
	}
	for _, want := range []Config{Default(), strange} {
		var b strings.Builder
		if err := want.Write(&b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(path); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v of\n%s", got, err, want, b.String())
		}
		// Every setting and every table has its comment.
		comment := false
		for line := range strings.Lines(b.String()) {
			line = strings.TrimSpace(line)
			if line != "" && !strings.HasPrefix(line, "#") && !comment {
				t.Errorf("%q has no comment in\n%s", line, b.String())
			}
			comment = strings.HasPrefix(line, "#")
		}
	}
}

func TestLoadNamesTheMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
}
