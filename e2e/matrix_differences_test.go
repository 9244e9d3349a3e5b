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
		rows: []string{
			"cp from a running container", "cp from a running container: no such file", "cp to a running container", "cp to a running container: in it",
		},
		what:      "`cp` from and to a running container",
		reason:    "It fails: nerdctl looks for the files in `/proc`, and they are in the machine. Use `tar` through `nerdctl exec -i`.",
		sometimes: true,
	},
	{
		rows: []string{
			"cp from a stopped container", "cp from a stopped container: its own file", "cp to a stopped container", "cp to a stopped container: in it",
			"run of a committed image",
		},
		what:   "`cp` from and to a stopped container",
		reason: "Do not use it: nerdctl mounts the snapshot, which holds only the image's `/etc/passwd` and `/etc/group`. Other files are not found; what is copied to `/` or `/etc` is lost without an error. Use `commit` and `save`.",
	},
	{
		rows:   []string{"diff of a running container", "diff of a stopped container", "export of a running container", "export of a stopped container"},
		what:   "`diff`, `export`",
		reason: "Do not use them: they see only `/etc/passwd` and `/etc/group`, and report no error, as nerdctl mounts the snapshot. Use `commit` and `save`.",
	},
	{
		rows:   []string{"run -v NAME:DIR of the image's"},
		what:   "A new volume over a directory of the image",
		reason: "It is empty: nerdctl fills it with the image's files from the snapshot, which holds only `/etc/passwd` and `/etc/group`. Fill it in the container.",
	},
	// What is not built yet.
	{rows: []string{"--memory", "--memory-reservation", "--pids-limit"}, sometimes: true},
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
