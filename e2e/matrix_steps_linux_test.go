package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/applevm/applevm/internal/treelist"
)

// writeFile makes a file in the side's directory; "{runtime}" in it is the side's.
func writeFile(name, content string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		content := strings.ReplaceAll(content, "{runtime}", sd.runtime)
		return result{}, os.WriteFile(filepath.Join(sd.dir, name), []byte(content), 0o644)
	}
}

// defaultNetwork describes nerdctl's default network, which compose would make, with plugins
// that need not be there, although no container uses it.
func defaultNetwork(sd *side) (result, error) {
	dir := filepath.Join(sd.s.Dir, "cni", sd.ns)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return result{}, err
	}
	return result{}, os.WriteFile(filepath.Join(dir, "nerdctl-bridge.conflist"), []byte(`{"cniVersion": "1.0.0", "name": "bridge",
"nerdctlID": "17f29b073143d8cd97b5bbe492bdeffec1c5fee55cc1fe2112c8b9335f8b6121", "nerdctlLabels": {"nerdctl/default-network": "true"},
"plugins": [{"type": "bridge", "bridge": "nerdctl0"}]}`), 0o644)
}

// readFiles prints files of the side's directory.
func readFiles(names ...string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		var b strings.Builder
		for _, n := range names {
			text, err := os.ReadFile(filepath.Join(sd.dir, n))
			if err != nil {
				return result{}, err
			}
			fmt.Fprintln(&b, strings.TrimSpace(string(text)))
		}
		return result{stdout: b.String()}, nil
	}
}

// copyOut copies a file of a container and prints it.
func copyOut(from string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		to := filepath.Join(sd.dir, strings.NewReplacer("/", "_", ":", "_").Replace(from))
		r, err := sd.nerdctl("", "cp", from, to)
		if err == nil && r.code == 0 {
			var text []byte
			text, err = os.ReadFile(to)
			r.stdout += string(text)
		}
		return r, err
	}
}

// copyIn copies a file into a container.
func copyIn(to string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		from := filepath.Join(sd.dir, "in")
		if err := os.WriteFile(from, []byte("copied in\n"), 0o644); err != nil {
			return result{}, err
		}
		return sd.nerdctl("", "cp", from, to)
	}
}

// copyTree copies a directory into a container and out of it again, and prints what
// became of it.
func copyTree(container string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		from, to := filepath.Join(sd.dir, "tree"), filepath.Join(sd.dir, "copy")
		err := errors.Join(os.MkdirAll(filepath.Join(from, "sub"), 0o2775),
			os.WriteFile(filepath.Join(from, "sub", "file"), bytes.Repeat([]byte("content\n"), 100_000), 0o640),
			os.Link(filepath.Join(from, "sub", "file"), filepath.Join(from, "hard")),
			os.Symlink("sub/file", filepath.Join(from, "link")),
			os.Chown(filepath.Join(from, "sub"), 1000, 2000),
			os.Chtimes(filepath.Join(from, "sub", "file"), time.Unix(1, 0), time.Unix(1_000_000_000, 0)))
		if err != nil {
			return result{}, err
		}
		if r, err := sd.nerdctl("", "cp", from, container+":/srv"); err != nil || r.code != 0 {
			return r, err
		}
		r, err := sd.nerdctl("", "exec", container, "sh", "-c", "cd /srv/tree && find . | sort | xargs stat -c '%n %F %a %u:%g %h %Y' | grep -v '^. ' | sed 's/\\(directory.*\\) .*/\\1/; s/\\(symbolic.*\\) .*/\\1/'")
		if err != nil || r.code != 0 {
			return r, err
		}
		out, err := sd.nerdctl("", "cp", container+":/srv/tree", to)
		if err != nil || out.code != 0 {
			return out, err
		}
		lines, err := treelist.List(to, treelist.Options{})
		for i, line := range lines {
			lines[i] = regexp.MustCompile(` (mtime|user)=\S*`).ReplaceAllString(line, "")
		}
		r.stdout += strings.Join(lines, "\n")
		return r, err
	}
}

// export exports a container and prints the names in the archive.
func export(container string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		r, err := sd.nerdctl("", "export", container)
		if err != nil {
			return r, err
		}
		var names []string
		for tr := tar.NewReader(bytes.NewReader([]byte(r.stdout))); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return r, fmt.Errorf("export: %w", err)
			}
			names = append(names, fmt.Sprintf("%s %o %d %s", h.Name, h.Mode, h.Size, h.Linkname))
		}
		r.stdout = sorted(strings.Join(names, "\n"))
		return r, nil
	}
}

// eventsOf runs commands and prints which events `nerdctl events` has told meanwhile.
func eventsOf(commands ...[]string) func(*side) (result, error) {
	return func(sd *side) (result, error) {
		ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
		defer cancel()
		var out lockedBuffer
		cmd := sd.cmd(ctx, "events", "--format", "{{.Namespace}} {{.Topic}} {{.Status}}")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			return result{}, err
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		// An image's label is an event that both sides have at once, to see that it listens.
		until := func(what string) error {
			for !strings.Contains(out.String(), what) {
				if ctx.Err() != nil {
					return fmt.Errorf("no %s in %q", what, &out)
				}
				if r, err := sd.nerdctl("", "tag", img, "matrix:event"); err != nil || r.code != 0 {
					return fmt.Errorf("tag: %w: %s", err, r)
				}
				time.Sleep(20 * time.Millisecond)
			}
			return nil
		}
		if err := until(sd.ns + " /images/"); err != nil {
			return result{}, err
		}
		for _, c := range commands {
			if r, err := sd.nerdctl("", c...); err != nil || r.code != 0 {
				return r, fmt.Errorf("%q: %w: %s", c, err, r)
			}
		}
		// A task's delete is published by the shim, which ends right then: runc's is
		// lost now and then, ours must not be. So it is waited for here, and not compared.
		const deleted = "/tasks/delete"
		wanted := []string{" /containers/delete"}
		if sd.ns != "runc" {
			wanted = append(wanted, " "+deleted)
		}
		for _, topic := range wanted {
			if err := until(sd.ns + topic); err != nil {
				return result{}, err
			}
		}
		var topics []string
		for l := range strings.Lines(out.String()) {
			// It tells those of all namespaces.
			l, own := strings.CutPrefix(l, sd.ns+" ")
			if own && !strings.HasPrefix(l, deleted) && (strings.HasPrefix(l, "/tasks/") || strings.HasPrefix(l, "/containers/")) {
				topics = append(topics, l)
			}
		}
		// The client's and the shim's come by different ways, in either order; and
		// containerd publishes a task's delete again if it notices the shim's end first.
		slices.Sort(topics)
		return result{stdout: strings.Join(slices.Compact(topics), "")}, nil
	}
}
