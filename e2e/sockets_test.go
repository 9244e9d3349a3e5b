package e2e

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/internal/accept"
)

// socketServer answers each client, when that has ended its half, with its name and what the
// client has sent.
const socketServer = `use IO::Socket::UNIX; my $l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die "listen: $!";
chmod 0600, $ARGV[0]; while (my $c = $l->accept) { my $all = join "", <$c>; print $c "container: $all"; close $c }`

// socketClient sends its second argument to the socket and prints the answer.
const socketClient = `use IO::Socket::UNIX; my $c = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "connect: $!\n";
print $c $ARGV[1]; $c->shutdown(1); print while <$c>`

// Unix sockets go both ways: a container mounts one of the host's, as people do with an SSH
// agent's, and has one of its own published on the host.
func TestSockets(t *testing.T) {
	s := userStack(t)
	dir := userDir(t, s, "so")
	ours, published := filepath.Join(dir, "agent"), filepath.Join(dir, "app")
	serve := func() net.Listener {
		l, err := net.Listen("unix", ours)
		if err == nil {
			err = os.Chmod(ours, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		giveToUser(t, ours)
		t.Cleanup(func() { _ = l.Close() })
		go accept.All(t.Context(), l, func(c net.Conn) {
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				_, _ = io.WriteString(c, "host: "+string(b))
			}()
		})
		return l
	}
	l := serve()
	args := append(bindArg(ours, "/run/host.sock", "ro"), "--annotation", "dev.applevm.publish-socket="+published+":/run/app/sock")
	id := background(t, s, args, "bash", "-c", `mkdir -p /srv/app && ln -s /srv/app /run/app && exec perl -e '`+socketServer+`' /srv/app/sock`)
	inside := func(user string, script ...string) result {
		return do(t, s.CtrExec(t.Context(), append([]string{"--exec-id", "x", "--user", user, id}, script...)...))
	}
	ask := func(user, text string) result {
		return inside(user, "perl", "-e", socketClient, "/run/host.sock", text)
	}

	if r := ask("0", "hello"); r.stdout != "host: hello" {
		t.Errorf("the host's socket: %s", r)
	}
	big := strings.Repeat("x", 100_000)
	if r := ask("0", big); r.stdout != "host: "+big {
		t.Errorf("%d bytes of %d came back", len(r.stdout), len(big))
	}
	if r := ask("1000", "hello"); !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("another user: %s", r)
	}
	if r := inside("0", "stat", "-c", "%F %u:%g %a", "/run/host.sock"); r.stdout != "socket 0:0 600\n" {
		t.Errorf("the socket: %s", r)
	}
	_ = l.Close()
	if r := ask("0", "hello"); r.stdout != "" {
		t.Errorf("nobody serves it: %s", r)
	}
	serve()
	if r := ask("0", "again"); r.stdout != "host: again" {
		t.Errorf("served anew: %s", r)
	}

	call := func() string {
		c, err := net.Dial("unix", published)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err.Error()
		}
		_ = c.(*net.UnixConn).CloseWrite()
		b, _ := io.ReadAll(c)
		return string(b)
	}
	waitFor(t, "the container's server", func() bool { return call() == "container: hello" })
	if st, err := os.Stat(published); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the published socket: %v, %v", st, err)
	}
	fails(t, s.CtrRun(t.Context(), "--rm", "--annotation", "dev.applevm.publish-socket="+published+":/x", img, name(t)+"2", "true"),
		"publish the container's socket /x as "+published, "another program serves a socket there")
	_ = s.Ctr(t.Context(), "task", "delete", "--force", id).Run()
	if _, err := os.Lstat(published); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the published socket outlives its container: %v", err)
	}
}

// A shim that is killed leaves no published socket behind.
func TestPublishedSocketsOfAKilledShim(t *testing.T) {
	s := userStack(t)
	published := filepath.Join(s.Dir, "tmp", "killed.sock")
	background(t, s, []string{"--annotation", "dev.applevm.publish-socket=" + published + ":/x"}, "sleep", "1000")
	if _, err := os.Lstat(published); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Shims() {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the socket to go", func() bool { _, err := os.Lstat(published); return errors.Is(err, fs.ErrNotExist) })
}
