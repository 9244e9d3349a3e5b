package config

import (
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

func TestLoadNamesTheMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name %s", err, path)
	}
}
