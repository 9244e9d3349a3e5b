package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/stack"
)

// difference is one that is accepted.
type difference struct {
	// rows are those of the matrix.
	rows []string
	// what and reason are for users: docs/nerdctl.md shows them.
	what, reason string
	// want must be in what applevm's side prints.
	want string
	// sometimes is set where the two may be the same too.
	sometimes bool
}

// differences are all that are accepted.
var differences = []difference{
	{
		rows:   []string{"top"},
		what:   "`top`",
		reason: "It shows the process of the virtual machine: `ps` runs on the host, where the container's processes are not. Use `nerdctl exec NAME ps -ef`.",
		want:   "root PIDS",
	},
	{
		rows:   []string{"default --ulimit"},
		what:   "`run` without `--ulimit`",
		reason: "The limits are those of the machine (1048576 open files), not those of the host's containerd.",
	},
	{
		rows:   []string{"default --oom-score-adj"},
		what:   "`run` without `--oom-score-adj`",
		reason: "It is 0; runc's is one above its shim's.",
	},
	{
		rows:   []string{"cp to a stopped container", "cp to a stopped container: in it"},
		what:   "`cp` to a stopped container",
		reason: "It fails: what nerdctl mounts is read-only. Start the container and use `tar` through `nerdctl exec -i`.",
	},
	{
		rows:   []string{"diff of a running container", "export of a running container"},
		what:   "`diff`, `export` of a running container",
		reason: "They fail (`device or resource busy`): what the container has written is in its machine's memory. Use `nerdctl pause` first, or `stop`, or `commit`.",
		want:   "device or resource busy",
	},
	// On a host with cgroup version 1, runc's container has shares instead of a weight.
	{rows: []string{"--cpu-shares"}, sometimes: true},
}

// accepted finds the difference that a row is in.
func accepted(row string) (difference, bool) {
	i := slices.IndexFunc(differences, func(d difference) bool { return slices.Contains(d.rows, row) })
	if i < 0 {
		return difference{}, false
	}
	return differences[i], true
}

// docs/nerdctl.md has the table that this file has.
func TestNerdctlDocs(t *testing.T) {
	root, err := stack.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	fmt.Fprint(&want, "| What | How it differs from runc |\n|---|---|\n")
	for _, d := range differences {
		if d.reason != "" {
			fmt.Fprintf(&want, "| %s | %s |\n", d.what, d.reason)
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "nerdctl.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n\n"+want.String()+"\n") {
		t.Errorf("docs/nerdctl.md does not have this table:\n%s", &want)
	}
	rows := map[string]bool{}
	for _, d := range differences {
		for _, r := range d.rows {
			if rows[r] {
				t.Errorf("row %q is in two differences", r)
			}
			rows[r] = true
		}
	}
}
