package task

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
)

func overlayIn(t *testing.T) (*types.Mount, string) {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return &types.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + dir + "/lower", "upperdir=" + dir + "/upper", "workdir=" + dir + "/work",
	}}, filepath.Join(dir, "root")
}

func TestMountRoot(t *testing.T) {
	m, dir := overlayIn(t)
	if os.Getuid() != 0 {
		_, err := mountRoot(m, dir)
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "only root") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v", err)
		}
		return
	}
	unmount, err := mountRoot(m, dir)
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("still mounted: %v, %v", list, err)
	}
	// Who had it open has it still.
	if names, err := open.Readdirnames(-1); err != nil || len(names) != 1 || names[0] != "file" {
		t.Errorf("open: %q, %v", names, err)
	}

	tmp := t.TempDir()
	bin := filepath.Join(tmp, "test")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("cp", exe, bin).Run(); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{tmp: 0o777, filepath.Dir(tmp): 0o755, bin: 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(bin, "-test.run", "^TestMountRoot$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}
