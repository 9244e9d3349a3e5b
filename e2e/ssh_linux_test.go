package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
	"github.com/applevm/applevm/internal/accept"
)

// asUser has a command run as the user of an unprivileged stack (giveToUser), at home in dir.
func asUser(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stack.Nobody, Gid: stack.Nobody}}
	}
	return cmd
}

// sshAgent has OpenSSH's agent serve a socket, in the stack's directory, until the test's end: by its
// arguments the stack's watchdog finds it when the test is killed.
func sshAgent(t *testing.T, socket string) {
	t.Helper()
	cmd := asUser(t, filepath.Dir(socket), "ssh-agent", "-D", "-a", socket)
	_, out := started(t, cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.Remove(socket)
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, socket) {
		t.Fatalf("ssh-agent says %q, %v", line, err)
	}
}

// sshKey makes a key pair, of which path.pub is the public half.
func sshKey(t *testing.T, path string) (public string) {
	t.Helper()
	must(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path))
	giveToUser(t, path)
	return strings.TrimSpace(readAll(t, path+".pub"))
}

// sshdScript gives its process a user "git", whose home directory is the first argument and whose
// number is the second, then no more than this user's privileges, and runs the other arguments.
const sshdScript = `home=$1 id=$2; shift 2
echo "git:x:$id:$id::$home:/bin/sh" >"$home/passwd"
mount --bind "$home/passwd" /etc/passwd
exec setpriv --reuid "$id" --regid "$id" --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"`

// serveSSH has OpenSSH's server serve the connections that ls accept, for a user "git", whose home is dir and who
// comes with the authorized key. There is a process for each connection, which ends with it, or as sshAgent's.
func serveSSH(t *testing.T, dir, authorized string, ls ...net.Listener) (hostKey string) {
	t.Helper()
	sshd, err := images.Sshd(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	hostKey = sshKey(t, filepath.Join(dir, "host"))
	conf := filepath.Join(dir, "sshd_config")
	for file, text := range map[string]string{
		filepath.Join(dir, "authorized_keys"): authorized + "\n",
		conf: "HostKey " + filepath.Join(dir, "host") + "\nAuthorizedKeysFile " + filepath.Join(dir, "authorized_keys") +
			"\nAuthenticationMethods publickey\nUsePAM no\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	argv := slices.Concat([]string{"--mount", "--propagation", "private", "sh", "-ec", sshdScript, "sh", dir, strconv.Itoa(stack.Nobody)}, sshd, []string{"-i", "-e", "-f", conf})
	var wg sync.WaitGroup
	serve := func(c *net.TCPConn) {
		f, err := c.File()
		_ = c.Close()
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		var log bytes.Buffer
		cmd := exec.CommandContext(t.Context(), "unshare", argv...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, &log
		cmd.WaitDelay = 5 * time.Second
		_ = cmd.Run() // fails with a client that may not come in
		t.Logf("sshd: %s", &log)
	}
	t.Cleanup(wg.Wait)
	for _, l := range ls {
		t.Cleanup(func() { _ = l.Close() })
		wg.Go(func() { accept.TCP(t.Context(), l, func(c *net.TCPConn) { wg.Go(func() { serve(c) }) }) })
	}
	return hostKey
}

// gitRepository makes a repository with the branch main, bare, and returns the hash of its last commit.
func gitRepository(t *testing.T, dir, name string) string {
	t.Helper()
	git := func(args ...string) string {
		t.Helper()
		return must(t, asUser(t, dir, "git", append([]string{"-c", "user.name=Test", "-c", "user.email=test@far.example"}, args...)...))
	}
	git("init", "-q", "-b", "main", "work")
	work := filepath.Join(dir, "work")
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	for i := range 2 {
		for n := range 100 {
			write(t, filepath.Join(work, fmt.Sprintf("src/%d/%d.txt", n%10, n)), strings.Repeat(fmt.Sprintf("line of %d\n", n), 100+i))
		}
		write(t, filepath.Join(work, "big"), string(big))
		git("-C", work, "add", ".")
		git("-C", work, "commit", "-q", "-m", "commit "+strconv.Itoa(i))
	}
	git("clone", "-q", "--bare", work, name)
	return strings.TrimSpace(git("-C", name, "rev-parse", "main"))
}

// TestGitOverTheHostsSSHAgent: git in a container clones from a server that only lets the owner of a key in, and pushes
// to it; the key is with an agent on the host, whose socket is mounted, and in no file.
func TestGitOverTheHostsSSHAgent(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root: run this with sudo")
	}
	ns := world(t)
	s := newStack(t, stack.Options{NetNS: ns.path(), Unprivileged: true, Bare: true})
	importImage(t, s, images.Developers)
	dir := userDir(t, s, "git")
	agent := filepath.Join(dir, "agent")
	sshAgent(t, agent)
	public := sshKey(t, filepath.Join(dir, "key"))
	add := asUser(t, dir, "ssh-add", "-q", filepath.Join(dir, "key"))
	add.Env = append(add.Env, "SSH_AUTH_SOCK="+agent)
	must(t, add)
	if err := os.Remove(filepath.Join(dir, "key")); err != nil {
		t.Fatal(err)
	}
	var ls []net.Listener
	if err := ns.do(t, func() error {
		for _, a := range []string{far4, far6} {
			l, err := net.Listen("tcp", net.JoinHostPort(a, "22"))
			if err != nil {
				return err
			}
			ls = append(ls, l)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	hostKey := serveSSH(t, dir, public, ls...)
	known := filepath.Join(dir, "known_hosts")
	write(t, known, "far.example "+hostKey+"\n")
	head := gitRepository(t, dir, "repo.git")
	url := "ssh://git@far.example" + filepath.Join(dir, "repo.git")

	mounts := bindArg(known, "/root/.ssh/known_hosts", "ro")
	if r := do(t, s.CtrRun(t.Context(), append(append([]string{"--rm"}, mounts...), images.DevelopersRef, "no-agent", "git", "clone", "-q", url, "/work")...)); r.code != 128 || !strings.Contains(r.stderr, "git@far.example: Permission denied (publickey).") {
		t.Errorf("without the agent: %s", r)
	}
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	mounts = append(append(mounts, bindArg(agent, "/ssh-agent")...), "--env", "SSH_AUTH_SOCK=/ssh-agent")
	must(t, s.CtrRun(t.Context(), append(append([]string{"-d"}, mounts...), images.DevelopersRef, id, "sleep", "1000")...))
	in := func(script string) *exec.Cmd {
		return s.CtrExec(t.Context(), "--exec-id", "git", id, "bash", "-ec", script)
	}
	if got := must(t, in("ssh-add -L")); got != public+"\n" {
		t.Errorf("the agent's keys are %q, want %q", got, public)
	}
	if r := do(t, in("git clone "+strings.Replace(url, "far.example", far4, 1)+" /other")); r.code != 128 || !strings.Contains(r.stderr, "Host key verification failed") {
		t.Errorf("a host that is not known: %s", r)
	}
	got := must(t, in("git clone -q "+url+" /work; cd /work; git rev-parse HEAD; git fsck --full --strict; git status --porcelain --ignored"))
	if got != head+"\n" {
		t.Errorf("the clone: got %q, want the commit %s and nothing that differs from it", got, head)
	}
	// And the other way.
	got = must(t, in(`cd /work; git config user.name Test; git config user.email test@far.example
head -c 3000000 /dev/urandom >more; git add more; git commit -q -m more; git push -q; git rev-parse HEAD`))
	repo := filepath.Join(dir, "repo.git")
	if pushed := must(t, asUser(t, dir, "git", "-C", repo, "rev-parse", "main")); pushed != got || got == head+"\n" {
		t.Errorf("pushed %s, the repository has %s", got, pushed)
	}
	must(t, asUser(t, dir, "git", "-C", repo, "fsck", "--full", "--strict"))
}
