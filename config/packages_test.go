package config_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"howett.net/plist"
)

// The formula is Ruby that runs, with a stand-in for Homebrew: it builds with make,
// installs with our own script, and keeps users' data out of its own directory.
func TestHomebrewFormula(t *testing.T) {
	dir := t.TempDir()
	guest := filepath.Join(dir, "guest")
	if err := os.MkdirAll(guest, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"image.json", "kernel", "initramfs"} {
		if err := os.WriteFile(filepath.Join(guest, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	run := func(guest string) (string, error) {
		cmd := exec.Command("ruby", "testdata/homebrew.rb", dir)
		var errs strings.Builder
		cmd.Stderr = &errs
		cmd.Env = append(os.Environ(), "HOMEBREW_APPLEVM_GUEST="+guest, "FORMULA="+checkout+"/config/homebrew/applevm.rb", "CHECKOUT="+checkout, "CODESIGN=true", "USER=ann")
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, &errs)
		}
		return string(out), err
	}
	if _, err := run(""); err == nil || !strings.Contains(err.Error(), "set HOMEBREW_APPLEVM_GUEST") {
		t.Errorf("without a guest image: %v", err)
	}
	out, err := run(guest)
	if err != nil {
		t.Fatal(err)
	}
	// The script's own words come first.
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var seen struct {
		System    [][]string
		DependsOn []any `json:"depends_on"`
		License   []any
		Caveats   []string
		Test      []int
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &seen); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(seen.System) != 2 || !slices.Equal(seen.System[0], []string{"make", "build", "tools", "DEPS=true"}) || !slices.Equal(seen.System[1], []string{"scripts/install", "install"}) {
		t.Errorf("commands %q", seen.System)
	}
	if len(seen.DependsOn) != 2 || len(seen.License) != 1 || len(seen.Test) != 1 {
		t.Errorf("%+v", seen)
	}
	for _, f := range []string{"keg/bin/containerd-shim-applevm-v1", "keg/bin/applevm-snapshotter", "keg/libexec/applevm/containerd", "keg/share/applevm/applevm.sh",
		"keg/etc/applevm/containerd.toml", "var/lib/applevm", "var/run/applevm", "var/log/applevm"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"directories", "snapshotter", "containerd"} {
		b, err := os.ReadFile(filepath.Join(dir, "keg/launchd/dev.applevm."+s+".plist"))
		if err != nil {
			t.Fatal(err)
		}
		var j job
		if _, err := plist.Unmarshal(b, &j); err != nil {
			t.Fatal(err)
		}
		if s != "directories" && (j.UserName != "ann" || !strings.HasPrefix(j.ProgramArguments[0], "/opt/homebrew/opt/applevm/") || !strings.HasPrefix(j.StandardErrorPath, dir+"/var/log/applevm/")) {
			t.Errorf("%+v", j)
		}
		if !strings.Contains(seen.Caveats[0], "/opt/homebrew/opt/applevm/launchd/*.plist") || !strings.Contains(seen.Caveats[0], s) {
			t.Errorf("caveats %s", seen.Caveats[0])
		}
	}
	conf, err := os.ReadFile(filepath.Join(dir, "keg/etc/applevm/config.toml"))
	if err != nil || !strings.Contains(string(conf), `root = "`+dir+`/var/lib/applevm"`) {
		t.Errorf("%s, %v", conf, err)
	}
}

// workflow is what we use of GitHub's workflow files.
type workflow struct {
	Name        string
	On          map[string]any
	Permissions map[string]string
	Concurrency map[string]any
	Jobs        map[string]struct {
		RunsOn   string `yaml:"runs-on"`
		Needs    string
		Timeout  int `yaml:"timeout-minutes"`
		Strategy struct {
			FailFast bool `yaml:"fail-fast"`
			Matrix   struct {
				Include []struct {
					Runner, Arch string
					Machines     bool
				}
			}
		}
		Steps []struct {
			Name, Uses, Run, If string
			With                map[string]string
		}
	}
}

// The workflow is well-formed, and runs make's targets that there are, on both systems.
func TestWorkflow(t *testing.T) {
	f, err := os.Open("../.github/workflows/ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	var w workflow
	if err := d.Decode(&w); err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	ran := map[string]string{}
	for name, j := range w.Jobs {
		if j.Timeout == 0 || len(j.Steps) == 0 || !strings.HasPrefix(j.Steps[0].Uses, "actions/checkout@") {
			t.Errorf("job %s: %+v", name, j)
		}
		for _, s := range j.Steps {
			if (s.Uses == "") == (s.Run == "") {
				t.Errorf("job %s: a step is either an action or a command: %+v", name, s)
			}
			ran[name] += s.Run + "\n"
		}
		for _, m := range regexp.MustCompile(`\bmake ([a-z0-9 -]+)`).FindAllStringSubmatch(ran[name], -1) {
			for _, target := range strings.Fields(m[1]) {
				if !strings.Contains(string(makefile), "\n"+target+":") {
					t.Errorf("job %s runs make %s, which the Makefile has not", name, target)
				}
			}
		}
	}
	for job, commands := range map[string][]string{
		"linux": {".ci/run", "make guest-all"},
		"macos": {"make darwin-check", "make cross", "make build tools", "sudo make install", "make test"},
	} {
		for _, c := range commands {
			if !strings.Contains(ran[job], c) {
				t.Errorf("job %s does not run %s", job, c)
			}
		}
	}
	if j := w.Jobs["macos"]; j.Needs != "linux" || j.RunsOn != "${{ matrix.runner }}" || len(j.Strategy.Matrix.Include) != 2 {
		t.Errorf("macos: %+v", j)
	}
	if st, err := os.Stat("../.ci/run"); err != nil || st.Mode()&0o100 == 0 {
		t.Errorf(".ci/run cannot be run: %v", err)
	}
}
