package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/applevm/applevm/guest/image/internal/cache"
)

const (
	// suite is the Debian release whose packages are used, whatever the host runs.
	suite = "bookworm"
	// keyring holds the archive's keys; package debian-archive-keyring.
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	// listsAge is how old apt's package lists may get before they are renewed.
	listsAge = 12 * time.Hour
)

// apt runs apt with state of its own: nothing of the host's lists, status or
// sources is read or changed, no privilege is needed, and the architecture may
// be one that the host's dpkg does not know.
type apt struct {
	arch string
	dir  string
}

// haveApt tells whether packages can be had, and verified, by apt here.
func haveApt() bool {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return false
	}
	_, err := os.Stat(keyring)
	return err == nil
}

// mirror is the Debian mirror's base URL. Hosts that cannot reach the public
// one name theirs in APPLEVM_DEBIAN_MIRROR.
func mirror() string {
	if m := os.Getenv("APPLEVM_DEBIAN_MIRROR"); m != "" {
		return strings.TrimSuffix(m, "/")
	}
	return "http://deb.debian.org"
}

func sources() string {
	var b strings.Builder
	for _, s := range []struct{ path, suite string }{
		{"debian", suite}, {"debian", suite + "-updates"}, {"debian-security", suite + "-security"},
	} {
		fmt.Fprintf(&b, "deb [signed-by=%s] %s/%s %s main\n", keyring, mirror(), s.path, s.suite)
	}
	return b.String()
}

// openApt prepares the state for an architecture and renews its lists if they
// are old. Lists that cannot be renewed are used as they are; that they exist
// at all is the least.
func openApt(ctx context.Context, arch string) (apt, error) {
	root, err := cache.Dir()
	if err != nil {
		return apt{}, err
	}
	a := apt{arch: arch, dir: filepath.Join(root, "apt", arch)}
	unlock, err := cache.Lock(ctx, filepath.Join("apt", arch))
	if err != nil {
		return apt{}, err
	}
	defer unlock()
	for _, d := range []string{"lists/partial", "cache/archives/partial", "empty"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return apt{}, err
		}
	}
	list, stamp := a.path("sources.list"), a.path("updated")
	want := sources()
	if have, err := os.ReadFile(list); err != nil || string(have) != want {
		os.Remove(stamp)
		if err := os.WriteFile(list, []byte(want), 0o644); err != nil {
			return apt{}, err
		}
	}
	fi, err := os.Stat(stamp)
	if err == nil && time.Since(fi.ModTime()) < listsAge {
		return a, nil
	}
	if _, uerr := a.run(ctx, "", "apt-get", "update", "-q"); uerr != nil {
		if err == nil && ctx.Err() == nil {
			return a, nil
		}
		return apt{}, fmt.Errorf("fetch Debian's package lists: %w", uerr)
	}
	return a, os.WriteFile(stamp, nil, 0o644)
}

func (a apt) path(name string) string { return filepath.Join(a.dir, name) }

func (a apt) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	opts := []string{
		"-o", "APT::Architecture=" + a.arch,
		"-o", "APT::Architectures=" + a.arch,
		"-o", "APT::Sandbox::User=", // apt's own user could not write into a home directory
		"-o", "APT::Update::Error-Mode=any",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
		"-o", "Dir::Etc::SourceList=" + a.path("sources.list"),
		"-o", "Dir::Etc::SourceParts=" + a.path("empty"),
		"-o", "Dir::Etc::Preferences=" + a.path("preferences"),
		"-o", "Dir::Etc::PreferencesParts=" + a.path("empty"),
		"-o", "Dir::State=" + a.dir,
		"-o", "Dir::State::Lists=" + a.path("lists"),
		"-o", "Dir::State::Status=/dev/null",
		"-o", "Dir::Cache=" + a.path("cache"),
	}
	cmd := exec.CommandContext(ctx, name, append(opts, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, firstError(errs.String()))
	}
	return out.String(), nil
}

// firstError picks the line that says what is wrong out of apt's output.
func firstError(s string) string {
	for line := range strings.Lines(s) {
		if strings.HasPrefix(line, "E:") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(s)
}

// printURIs lines look like: 'URL' FILE SIZE SHA256:HEX
var uriLine = regexp.MustCompile(`(?m)^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$`)

func (a apt) resolve(ctx context.Context, name string) (Package, error) {
	out, err := a.run(ctx, a.dir, "apt-get", "download", "--print-uris", name)
	if err != nil {
		return Package{}, err
	}
	m := uriLine.FindStringSubmatch(out)
	if m == nil {
		return Package{}, fmt.Errorf("apt does not say where package %s is: %q", name, out)
	}
	return Package{Name: name, Arch: a.arch, URL: m[1], SHA256: m[4]}, nil
}

// dependency returns the first package that name depends on and that starts
// with prefix.
func (a apt) dependency(ctx context.Context, name, prefix string) (string, error) {
	out, err := a.run(ctx, a.dir, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		deps, ok := strings.CutPrefix(line, "Depends: ")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(deps, ",") {
			if f := strings.Fields(d); len(f) > 0 && strings.HasPrefix(f[0], prefix) {
				return f[0], nil
			}
		}
	}
	return "", fmt.Errorf("package %s does not depend on any %s…: Debian's naming has changed", name, prefix)
}

// download puts the package's file into dir and returns its path.
func (a apt) download(ctx context.Context, name, dir string) (string, error) {
	if _, err := a.run(ctx, dir, "apt-get", "download", "-q", name); err != nil {
		// The lists may name a version that the mirror has removed since: the
		// next attempt renews them.
		os.Remove(a.path("updated"))
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", errors.Join(err, fmt.Errorf("apt-get download %s left %d files", name, len(files)))
	}
	return files[0], nil
}
