package config_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/pelletier/go-toml/v2"
	"howett.net/plist"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/shim/plan"
	"github.com/applevm/applevm/snapshotter/hostconfig"
)

// place is where a test installs.
type place struct {
	dest, prefix, system string
	signed               string // what the stand-in for codesign was called with
}

func newPlace(t *testing.T, prefix, system string) *place {
	t.Helper()
	return &place{dest: filepath.Join(t.TempDir(), "dest"), prefix: prefix, system: system, signed: filepath.Join(t.TempDir(), "signed")}
}

// run runs scripts/install.
func (p *place) run(t *testing.T, command string, env ...string) {
	t.Helper()
	// There is no codesign but on a Mac: this one writes down what it is asked for.
	codesign := filepath.Join(filepath.Dir(p.signed), "codesign")
	if err := os.WriteFile(codesign, fmt.Appendf(nil, "#!/bin/sh\necho \"$*\" >>%q\n", p.signed), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("../scripts/install", command)
	cmd.Env = append(os.Environ(), append([]string{"DESTDIR=" + p.dest, "PREFIX=" + p.prefix, "SYSTEM=" + p.system, "OWNER=ann", "CODESIGN=" + codesign, "PURGE="}, env...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("install %s: %v: %s", command, err, out)
	}
}

// list is all there is, files with their modes.
func (p *place) list(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(p.dest, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == p.dest {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, p.dest)
		if d.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil || len(entries) > 0 {
				return err
			}
			name += "/"
		} else {
			name = fmt.Sprintf("%#o %s", st.Mode().Perm(), name)
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

func (p *place) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(p.dest + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What install leaves, and that uninstall takes it away but for what users have made.
func TestInstallAndUninstall(t *testing.T) {
	guest := func(prefix string) []string {
		var out []string
		for _, f := range []string{"image.json", "initramfs", "kernel"} {
			out = append(out, "0644 "+prefix+"/share/applevm/guest/"+runtime.GOARCH+"/"+f)
		}
		return out
	}
	for _, tc := range []struct {
		system, prefix string
		want           []string
		kept           []string // directories of users' data
	}{
		{"Darwin", "/opt/some where/../x", nil, nil},
		{"Darwin", "/usr/local", append(guest("/usr/local"),
			"/usr/local/var/lib/applevm/", "/usr/local/var/lib/containerd/", "/usr/local/var/lib/nerdctl/", "/usr/local/var/log/applevm/", "/usr/local/var/run/applevm/",
			"0644 /Library/LaunchDaemons/dev.applevm.containerd.plist", "0644 /Library/LaunchDaemons/dev.applevm.directories.plist", "0644 /Library/LaunchDaemons/dev.applevm.snapshotter.plist",
			"0644 /usr/local/etc/applevm/cdi/applevm.json", "0644 /usr/local/etc/applevm/config.toml", "0644 /usr/local/etc/applevm/containerd.toml", "0644 /usr/local/etc/applevm/nerdctl.toml",
			"0644 /usr/local/share/applevm/applevm.sh",
			"0755 /usr/local/bin/applevm-snapshotter", "0755 /usr/local/bin/containerd-shim-applevm-v1",
			"0755 /usr/local/libexec/applevm/containerd", "0755 /usr/local/libexec/applevm/ctr", "0755 /usr/local/libexec/applevm/nerdctl",
		), []string{"/usr/local/var/lib/applevm", "/usr/local/var/lib/containerd", "/usr/local/var/lib/nerdctl"}},
		{"Linux", "/opt/applevm", append(guest("/opt/applevm"),
			"0644 /etc/systemd/system/applevm-snapshotter.service", "0644 /etc/systemd/system/applevm-view.service",
			"0755 /opt/applevm/bin/applevm-snapshotter", "0755 /opt/applevm/bin/containerd-shim-applevm-v1",
		), []string{"/var/lib/applevm"}},
	} {
		t.Run(tc.system+" "+tc.prefix, func(t *testing.T) {
			p := newPlace(t, tc.prefix, tc.system)
			if tc.want == nil {
				cmd := exec.Command("../scripts/install", "install")
				cmd.Env = append(os.Environ(), "DESTDIR="+p.dest, "PREFIX="+tc.prefix, "SYSTEM="+tc.system)
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "use letters, digits and") || len(p.list0()) > 0 {
					t.Errorf("%v: %s; it left %q", err, out, p.list0())
				}
				return
			}
			p.run(t, "install")
			slices.Sort(tc.want)
			first := p.list(t)
			if !slices.Equal(first, tc.want) {
				t.Errorf("installed\n%s\nwant\n%s", strings.Join(first, "\n"), strings.Join(tc.want, "\n"))
			}
			p.run(t, "install") // over itself
			if again := p.list(t); !slices.Equal(again, first) {
				t.Errorf("a second time\n%s", strings.Join(again, "\n"))
			}
			var kept []string
			for _, d := range tc.kept {
				if err := os.MkdirAll(p.dest+d, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p.dest+d+"/data", nil, 0o600); err != nil {
					t.Fatal(err)
				}
				kept = append(kept, "0600 "+d+"/data")
			}
			p.run(t, "uninstall")
			if left := withoutSystems(p.list(t)); !slices.Equal(left, kept) {
				t.Errorf("uninstall leaves %q, want %q", left, kept)
			}
			p.run(t, "uninstall", "PURGE=1")
			if left := withoutSystems(p.list(t)); len(left) > 0 {
				t.Errorf("uninstall with PURGE=1 leaves %q", left)
			}
		})
	}
}

// withoutSystems leaves out empty directories that each system has, and PREFIX.
func withoutSystems(list []string) []string {
	return slices.DeleteFunc(list, func(l string) bool {
		return slices.Contains([]string{"/Library/", "/opt/", "/opt/applevm/", "/usr/", "/usr/local/", "/var/", "/var/lib/", "/etc/"}, l)
	})
}

// list0 is what is there of a place where perhaps nothing is.
func (p *place) list0() []string {
	entries, _ := os.ReadDir(p.dest)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// installed is macOS's installation with a prefix of its own, so that one that is
// forgotten in a file shows.
func installed(t *testing.T) *place {
	t.Helper()
	p := newPlace(t, "/opt/avm", "Darwin")
	p.run(t, "install")
	return p
}

// Nothing that install fills in is left open.
func TestInstalledFilesAreFilledIn(t *testing.T) {
	p := installed(t)
	for _, l := range p.list(t) {
		name, ok := strings.CutPrefix(l, "0644 ")
		if !ok || strings.Contains(name, "/guest/") {
			continue
		}
		for i, line := range strings.Split(string(p.read(t, name)), "\n") {
			if strings.Contains(line, "/usr/local") || strings.Contains(line, "@USER@") || strings.Contains(line, "@ARCH@") || strings.Contains(line, "@UID@") || strings.Contains(line, "@GID@") {
				t.Errorf("%s:%d: %s", name, i+1, line)
			}
		}
	}
}

// The shim has the entitlement, and it alone.
func TestInstallSigns(t *testing.T) {
	p := installed(t)
	b, err := os.ReadFile(p.signed)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--sign - --force --entitlements config/applevm.entitlements " + p.dest + "/opt/avm/bin/containerd-shim-applevm-v1"}
	for _, f := range []string{"bin/applevm-snapshotter", "libexec/applevm/containerd", "libexec/applevm/ctr", "libexec/applevm/nerdctl"} {
		want = append(want, "--sign - --force "+p.dest+"/opt/avm/"+f)
	}
	if got := strings.Split(strings.TrimSpace(string(b)), "\n"); !slices.Equal(got, want) {
		t.Errorf("codesign was called with\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b, err = os.ReadFile("applevm.entitlements")
	if err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if _, err := plist.Unmarshal(b, &e); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e, map[string]any{"com.apple.security.virtualization": true}) {
		t.Errorf("entitlements %v", e)
	}
}

// job is what we use of launchd.plist(5). A key that is not here is an error.
type job struct {
	Label, UserName, StandardErrorPath     string
	ProgramArguments                       []string
	EnvironmentVariables                   map[string]string
	RunAtLoad, AbandonProcessGroup         bool
	KeepAlive                              map[string]bool
	ExitTimeOut, Umask                     int
	SoftResourceLimits, HardResourceLimits map[string]int
}

func TestLaunchdJobs(t *testing.T) {
	p := installed(t)
	const prefix = "/opt/avm"
	for _, tc := range []struct {
		name, user, program, log string
		args                     []string
		restarts                 bool
	}{
		{"snapshotter", "ann", prefix + "/bin/applevm-snapshotter", prefix + "/var/log/applevm/snapshotter.log", []string{"--log-level", "info"}, true},
		{"containerd", "ann", prefix + "/libexec/applevm/containerd", prefix + "/var/log/applevm/containerd.log", []string{"--config", prefix + "/etc/applevm/containerd.toml"}, true},
		{"directories", "", "/usr/bin/install", "", []string{"-d", "-o", "ann", "-m", "0711", "/var/run/containerd", "/var/run/containerd/fifo", "/var/run/containerd/s"}, false},
	} {
		b := p.read(t, "/Library/LaunchDaemons/dev.applevm."+tc.name+".plist")
		var j job
		var all map[string]any
		if _, err := plist.Unmarshal(b, &j); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if _, err := plist.Unmarshal(b, &all); err != nil {
			t.Fatal(err)
		}
		for k := range all {
			if _, known := reflect.TypeFor[job]().FieldByName(k); !known {
				t.Errorf("%s: launchd has no key %q that we know", tc.name, k)
			}
		}
		if j.Label != "dev.applevm."+tc.name || j.UserName != tc.user || !slices.Equal(j.ProgramArguments, append([]string{tc.program}, tc.args...)) ||
			j.StandardErrorPath != tc.log || !j.RunAtLoad || reflect.DeepEqual(j.KeepAlive, map[string]bool{"SuccessfulExit": false}) != tc.restarts {
			t.Errorf("%s: %+v", tc.name, j)
		}
		if strings.HasPrefix(tc.program, prefix) {
			p.read(t, tc.program)
			if j.EnvironmentVariables["APPLEVM_CONFIG"] != prefix+"/etc/applevm/config.toml" {
				t.Errorf("%s: environment %v", tc.name, j.EnvironmentVariables)
			}
		}
		if j.StandardErrorPath != "" {
			if st, err := os.Stat(p.dest + filepath.Dir(j.StandardErrorPath)); err != nil || !st.IsDir() {
				t.Errorf("%s: its log has no directory: %v", tc.name, err)
			}
		}
		if tc.name == "containerd" && (!j.AbandonProcessGroup || !strings.HasPrefix(j.EnvironmentVariables["PATH"], prefix+"/bin:") || j.SoftResourceLimits["NumberOfFiles"] < 10000) {
			t.Errorf("containerd: %+v", j)
		}
	}
}

// The three configurations agree on their sockets, and say what hostconfig says.
func TestInstalledConfiguration(t *testing.T) {
	p := installed(t)
	c, err := config.Load(p.dest + "/opt/avm/etc/applevm/config.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Guest.Dir != "/opt/avm/share/applevm/guest/"+runtime.GOARCH {
		t.Errorf("guest.dir %s", c.Guest.Dir)
	}
	var ctd srvconfig.Config
	if err := srvconfig.LoadConfig(t.Context(), p.dest+"/opt/avm/etc/applevm/containerd.toml", &ctd); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	if err := (hostconfig.Containerd{Address: c.Snapshotter.Address, Platform: "linux/" + runtime.GOARCH}).Write(&want); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "want.toml")
	if err := os.WriteFile(file, []byte(want.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var ours srvconfig.Config
	if err := srvconfig.LoadConfig(t.Context(), file, &ours); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(ctd.ProxyPlugins, ours.ProxyPlugins) {
		t.Errorf("proxy plugins %+v, want %+v", ctd.ProxyPlugins, ours.ProxyPlugins)
	}
	const diff = "io.containerd.service.v1.diff-service"
	if !reflect.DeepEqual(ctd.Plugins[diff], ours.Plugins[diff]) {
		t.Errorf("%s: %v, want %v", diff, ctd.Plugins[diff], ours.Plugins[diff])
	}
	var raw struct {
		GRPC struct {
			Address  string
			UID, GID int
		}
		Plugins map[string]struct {
			SocketDir string `toml:"socket_dir"`
		}
	}
	if err := toml.Unmarshal(p.read(t, "/opt/avm/etc/applevm/containerd.toml"), &raw); err != nil {
		t.Fatal(err)
	}
	if raw.GRPC.Address != c.Snapshotter.ContainerdAddress || raw.GRPC.UID != 501 || raw.GRPC.GID != 20 {
		t.Errorf("grpc %+v, applevm dials %s", raw.GRPC, c.Snapshotter.ContainerdAddress)
	}
	// containerd's name of a shim's socket is a SHA-256 in hexadecimal (pkg/shim, SocketAddress).
	if dir := raw.Plugins["io.containerd.shim.v1.manager"].SocketDir; dir == "" || len(dir)+1+64 > 103 {
		t.Errorf("a socket in %q has more than 103 bytes", dir)
	}
	var n map[string]any
	if err := toml.Unmarshal(p.read(t, "/opt/avm/etc/applevm/nerdctl.toml"), &n); err != nil {
		t.Fatal(err)
	}
	if n["address"] != raw.GRPC.Address || n["snapshotter"] != hostconfig.Snapshotter || n["data_root"] != "/opt/avm/var/lib/nerdctl" ||
		!reflect.DeepEqual(n["cdi_spec_dirs"], []any{"/opt/avm/etc/applevm/cdi"}) {
		t.Errorf("nerdctl.toml %v", n)
	}
	var device struct {
		Devices []struct {
			ContainerEdits struct{ DeviceNodes []struct{ Path string } }
		}
	}
	if err := json.Unmarshal(p.read(t, "/opt/avm/etc/applevm/cdi/applevm.json"), &device); err != nil {
		t.Fatal(err)
	}
	if device.Devices[0].ContainerEdits.DeviceNodes[0].Path != plan.Marker {
		t.Errorf("CDI device %+v, want %s", device, plan.Marker)
	}
	if _, err := cdi.ReadSpec(p.dest+"/opt/avm/etc/applevm/cdi/applevm.json", 0); err != nil {
		t.Error(err)
	}
}

// The alias adds flags to run and create, and what is given it leaves alone.
func TestNerdctlAlias(t *testing.T) {
	p := installed(t)
	bin := t.TempDir()
	if err := os.WriteFile(bin+"/nerdctl", []byte("#!/bin/sh\nprintf '[%s]' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	platform, rt := "[--platform][linux/"+runtime.GOARCH+"]", "[--runtime][io.containerd.applevm.v1]"
	const network, device = "[--net][none][--annotation][dev.applevm.network=user]", "[--device][applevm.dev/os=linux]"
	for _, tc := range []struct{ args, want string }{
		{"ps -a", "[ps][-a]"},
		{"", "[]"},
		{"image ls", "[image][ls]"},
		{"run --rm debian echo 'a b' ''", "[run]" + platform + rt + network + device + "[--rm][debian][echo][a b][]"},
		{"create debian", "[create]" + platform + rt + network + device + "[debian]"},
		{"container run debian", "[run]" + platform + rt + network + device + "[debian]"},
		{"run --net=host debian", "[run]" + platform + rt + device + "[--net=host][debian]"},
		{"run --network host debian", "[run]" + platform + rt + device + "[--network][host][debian]"},
		{"run --platform linux/riscv64 --runtime x --net none --device applevm.dev/os=linux debian", "[run][--platform][linux/riscv64][--runtime][x][--net][none][--device][applevm.dev/os=linux][debian]"},
		{"run debian -- prog --net x", "[run]" + platform + rt + network + device + "[debian][--][prog][--net][x]"},
		{"-n other run debian", "[-n][other][run][debian]"},
	} {
		for _, shell := range []string{"sh", "bash"} {
			cmd := exec.Command(shell, "-eu", "-c", ". "+p.dest+"/opt/avm/share/applevm/applevm.sh; nerdctl "+tc.args)
			cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != tc.want {
				t.Errorf("%s: nerdctl %s: %v, %s\nwant %s", shell, tc.args, err, out, tc.want)
			}
		}
	}
}

// All shell scripts are shellcheck's.
func TestShellScripts(t *testing.T) {
	out, err := exec.Command("shellcheck", "../scripts/install", "../scripts/deps", "../scripts/generate", "../.ci/run", "macos/applevm.sh").CombinedOutput()
	if err != nil {
		t.Errorf("shellcheck (Debian's package of that name): %v\n%s", err, out)
	}
}
