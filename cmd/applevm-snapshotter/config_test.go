package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/config"
)

func TestFlagsOverrideTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("[snapshotter]\nroot = \"/file/root\"\naddress = \"/file/s.sock\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := call{args: []string{"--config", file, "--address", "/flag/s.sock", "--containerd-address", "/flag/c.sock"}}
	cfg, err := c.parseConfig(new(flag.FlagSet))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default().Snapshotter
	want.Root, want.Address, want.ContainerdAddress = "/file/root", "/flag/s.sock", "/flag/c.sock"
	if cfg.Snapshotter != want {
		t.Errorf("got %+v, want %+v", cfg.Snapshotter, want)
	}
}

func TestConfigContainerd(t *testing.T) {
	t.Setenv(config.Env, "")
	out, err := output(t, "config", "containerd", "--address", "/x/s.sock")
	if err != nil || !strings.Contains(out, `address = "/x/s.sock"`) {
		t.Errorf("%v; the socket is not in\n%s", err, out)
	}
}

// TestConfigPrintsWhatItReads reads what config default and config dump print.
func TestConfigPrintsWhatItReads(t *testing.T) {
	t.Setenv(config.Env, filepath.Join(t.TempDir(), "given.toml"))
	if err := os.WriteFile(os.Getenv(config.Env), []byte("[machine]\ncpus = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	changed := config.Default()
	changed.Machine.CPUs = 3
	changed.Snapshotter.Root = "/a b"
	for _, tt := range []struct {
		args []string
		want config.Config
	}{
		{[]string{"config", "default"}, config.Default()},
		{[]string{"config", "dump", "--root", "/a b"}, changed},
	} {
		out, err := output(t, tt.args...)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "printed.toml")
		if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := config.Load(file); err != nil || got != tt.want {
			t.Errorf("%q gives %+v, %v, want %+v", tt.args, got, err, tt.want)
		}
	}
}
