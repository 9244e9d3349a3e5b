package qemu_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/vmm/vmmtest"
)

// Where the driver runs as root, QEMU sees neither the host's files nor its network.
func TestQEMUSeesNothingOfTheHost(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may change roots and namespaces")
	}
	dir := shortdir.New(t)
	m := vmmtest.Boot(t, newDriver(t), vmmtest.ConfigFor(vmmtest.Image(t), dir))
	proc := fmt.Sprintf("/proc/%d/", m.PID())
	files, err := os.ReadDir(proc + "root/")
	if err != nil || len(files) > 0 {
		t.Errorf("in its root directory: %v, %v", files, err)
	}
	b, err := os.ReadFile(proc + "net/dev")
	if err != nil {
		t.Fatal(err)
	}
	// Two lines of headings, then one for each interface.
	if n := strings.Count(string(b), "\n"); n != 3 || !strings.Contains(string(b), "lo:") {
		t.Errorf("its network:\n%s", b)
	}
}
