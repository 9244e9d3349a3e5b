package vmmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/vmm"
)

// parentEnv makes the test binary the parent of a machine: its value is the
// machine's configuration.
const parentEnv = "VMMTEST_PARENT"

const parentSays = "vmmtest machine "

// beParent starts a machine, says its PID and waits for its own end.
func beParent(d vmm.Driver, config string) {
	var cfg vmm.Config
	err := json.Unmarshal([]byte(config), &cfg)
	if err == nil {
		var m vmm.Machine
		if m, err = d.New(cfg); err == nil {
			err = m.Start(context.Background())
		}
		if err == nil {
			fmt.Println(parentSays + strconv.Itoa(m.PID()))
			<-m.Done()
			err = fmt.Errorf("the machine ended: %w", m.Err())
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func (s *Suite) testDiesWithParent(t *testing.T, img image.Image) {
	dir, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir) // a killed parent does not clean up
	cfg, err := json.Marshal(ConfigFor(img, dir))
	if err != nil {
		t.Fatal(err)
	}
	top, _, _ := strings.Cut(t.Name(), "/")
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+top+"$", "-test.v=false")
	cmd.Env = append(os.Environ(), parentEnv+"="+string(cfg))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), parentSays); ok {
			pid, err = strconv.Atoi(v)
		} else {
			t.Log(lines.Text())
		}
	}
	if pid == 0 || err != nil {
		cancel()
		_ = cmd.Wait()
		t.Fatalf("the parent did not start a machine: %v", err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the machine does not run: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // reports the kill
	for deadline := time.Now().Add(testTimeout); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("the machine has outlived its parent")
		}
	}
}

// alive is false for zombies, which wait for whoever has adopted them.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return syscall.Kill(pid, 0) == nil
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
