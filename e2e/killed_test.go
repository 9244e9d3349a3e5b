package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// killedEnv makes the test binary the victim of TestKilledTestLeavesNothing.
const killedEnv = "APPLEVM_E2E_VICTIM"

// A test that is killed half-way, a container running, leaves nothing behind.
func TestKilledTestLeavesNothing(t *testing.T) {
	if os.Getenv(killedEnv) != "" {
		victim(t)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), killedEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if d, ok := strings.CutPrefix(lines.Text(), "running in "); ok {
			dir = d
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if dir == "" {
		t.Fatal("the victim did not get its container to run")
	}
	waitFor(t, "the end of all processes and files of "+dir, func() bool {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
		found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range found {
			if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir+"/") {
				return false
			}
		}
		return true
	})
}

func victim(t *testing.T) {
	s, err := stack.Start(t.Context(), stack.Options{Unprivileged: true})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := images.Debian(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	must(t, s.CtrRun(t.Context(), "-d", img, "victim", "sleep", "1000"))
	if len(s.VMMs()) != 1 {
		t.Fatalf("machines: %v", s.VMMs())
	}
	fmt.Printf("running in %s\n", s.Dir)
	select {}
}
