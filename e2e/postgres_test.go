package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// postgresScript makes a database in /data where there is none, as PostgreSQL's image does,
// and serves it. PostgreSQL refuses a directory that is another's, or open to others.
const postgresScript = `as="setpriv --reuid=postgres --regid=postgres --init-groups"
bin=` + images.PostgresBin + `
if [ ! -e /data/pg ]; then
	install -d -o postgres -g postgres -m 700 /data/pg
	$as $bin/initdb -D /data/pg --data-checksums --auth=trust --locale=C --encoding=UTF8 >/dev/null
fi
stat -c '%n %U:%G %a' /data/pg /data/pg/PG_VERSION >&2
exec $as $bin/postgres -D /data/pg -k /tmp`

// insertScript has clients insert rows, a transaction each in two tables, and print which
// when PostgreSQL has acknowledged it; another makes checkpoints meanwhile. The arguments are
// each client's last row.
const insertScript = `sql() { stdbuf -oL ` + images.PostgresBin + `/psql -h /tmp -U postgres -qAtX -v ON_ERROR_STOP=1; }
insert() {
	n=$2
	while n=$((n + 1)); do
		echo "BEGIN; INSERT INTO rows VALUES ($1, $n, repeat(md5('$1.$n'), 8)); INSERT INTO log VALUES ($1, $n, now()); COMMIT;
\echo $1 $n"
	done | sql
}
while echo 'CHECKPOINT;'; do sleep 0.1; done | sql &
c=0; for last; do insert $c $last & c=$((c + 1)); done
wait`

// postgres is PostgreSQL in a container.
type postgres struct {
	s     *stack.Stack
	id    string
	ended chan struct{} // closed when ctr has ended, with
	code  int           // its exit code

	mu  sync.Mutex
	log bytes.Buffer // PostgreSQL's
}

// startPostgres returns when PostgreSQL serves.
func startPostgres(t *testing.T, s *stack.Stack, data []string) *postgres {
	t.Helper()
	p := &postgres{s: s, id: name(t), ended: make(chan struct{})}
	cmd := s.CtrRun(t.Context(), append(data[:len(data):len(data)], images.DevelopersRef, p.id, "bash", "-ec", postgresScript)...)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		p.code = cmd.ProcessState.ExitCode()
		_ = w.Close()
		close(p.ended)
	}()
	ready := make(chan struct{})
	go func() {
		serves := false
		for lines := bufio.NewScanner(r); lines.Scan(); {
			p.mu.Lock()
			_, _ = p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if !serves && strings.Contains(lines.Text(), "ready to accept connections") {
				serves = true
				close(ready)
			}
		}
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.logged())
		}
		p.remove(t)
	})
	select {
	case <-ready:
	case <-p.ended:
		t.Fatalf("PostgreSQL's container ended: exit code %d, %s", p.code, p.logged())
	case <-time.After(3 * limit): // a boot, and initdb in an emulated machine
		t.Fatalf("PostgreSQL does not serve: %s", p.logged())
	}
	return p
}

func (p *postgres) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// remove takes the container away. A task whose shim is dead is containerd's to remove.
func (p *postgres) remove(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	waitFor(t, "the end of container "+p.id, func() bool {
		_ = p.s.Ctr(ctx, "task", "delete", "--force", p.id).Run()
		_ = p.s.Ctr(ctx, "container", "delete", p.id).Run()
		return !slices.Contains(strings.Fields(must(t, p.s.Ctr(ctx, "container", "list", "-q"))), p.id)
	})
}

// end waits for the container's end, removes it and returns its exit code.
func (p *postgres) end(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(limit):
		t.Fatalf("the container does not end: %s", p.logged())
	}
	p.remove(t)
	return p.code
}

// exec prepares a command in the container.
func (p *postgres) exec(ctx context.Context, id string, args ...string) *exec.Cmd {
	return p.s.CtrExec(ctx, append([]string{"--exec-id", id, p.id}, args...)...)
}

// query returns what PostgreSQL answers to an SQL command.
func (p *postgres) query(t *testing.T, sql string) string {
	t.Helper()
	return must(t, p.exec(t.Context(), "query", images.PostgresBin+"/psql", "-h", "/tmp", "-U", "postgres", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql))
}

// insert has a client for each element of last insert rows after that one, and calls kill
// when some are acknowledged. It sets last to the clients' last acknowledged rows.
func (p *postgres) insert(t *testing.T, last []int, kill func()) {
	t.Helper()
	const some = 50
	args := []string{"bash", "-c", insertScript, "insert"}
	for _, n := range last {
		args = append(args, fmt.Sprint(n))
	}
	cmd := p.exec(t.Context(), "insert", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_, out := piped(t, cmd)
	acked := 0
	for r := bufio.NewReader(out); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			break // a machine that is killed may leave a part of a line
		}
		var c, n int
		if _, err := fmt.Sscanf(line, "%d %d", &c, &n); err != nil || c < 0 || c >= len(last) || n != last[c]+1 {
			t.Fatalf("a client says %q after rows %v", line, last)
		}
		last[c] = n
		if acked++; acked == some {
			kill()
		}
	}
	if err := cmd.Wait(); acked < some {
		t.Fatalf("%d rows were acknowledged before the clients ended: %v, %s", acked, err, &stderr)
	}
	t.Logf("%d rows acknowledged: %v", acked, last)
}

// check requires all rows up to those that were acknowledged, whole and in both tables, and
// nothing but rows that follow without a gap. It sets acked to the last rows there.
func (p *postgres) check(t *testing.T, acked []int) {
	t.Helper()
	got := p.query(t, `SELECT client, count(*), min(n), max(n), bool_and(body = repeat(md5(client || '.' || n), 8)) FROM rows GROUP BY client ORDER BY client`)
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != len(acked) {
		t.Fatalf("of %d clients there is %s", len(acked), got)
	}
	for c, line := range lines {
		var client, count, first, last int
		var whole string
		if _, err := fmt.Sscanf(strings.ReplaceAll(line, "|", " "), "%d %d %d %d %s", &client, &count, &first, &last, &whole); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if client != c || first != 1 || count != last || last < acked[c] || whole != "t" {
			t.Errorf("client %d: rows up to %d were acknowledged; number, first, last and whether all are whole: %s", c, acked[c], line)
		}
		acked[c] = last
	}
	if got := p.query(t, `SELECT count(*) FROM rows FULL JOIN log USING (client, n) WHERE body IS NULL OR at IS NULL`); got != "0\n" {
		t.Errorf("transactions that are there by half: %s", got)
	}
}

// TestPostgresLosesNothing: PostgreSQL on a directory of an ordinary user's and on a disk; its
// machine is killed while clients insert, and all is there that was acknowledged.
func TestPostgresLosesNothing(t *testing.T) {
	s := userStack(t)
	importImage(t, s, images.Developers)
	t.Cleanup(func() { must(t, s.Ctr(context.Background(), "image", "delete", "--sync", images.DevelopersRef)) })
	kill := func(t *testing.T, ps []stack.Process) {
		t.Helper()
		if len(ps) != 1 {
			t.Fatalf("processes to kill: %v, want one", ps)
		}
		if err := syscall.Kill(ps[0].PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	// lives shows a database its life, with data mounted at /data; victims are the processes
	// that are killed, one after the other.
	lives := func(t *testing.T, data []string, victims ...func() []stack.Process) {
		t.Helper()
		start := func() *postgres {
			t.Helper()
			p := startPostgres(t, s, data)
			if want := "/data/pg postgres:postgres 700\n/data/pg/PG_VERSION postgres:postgres 600\n"; !strings.HasPrefix(p.logged(), want) {
				t.Errorf("got %s\nwant %s", p.logged(), want)
			}
			return p
		}
		acked := make([]int, 3)
		p := start()
		p.query(t, `CREATE TABLE rows (client int, n int, body text, PRIMARY KEY (client, n)); CREATE TABLE log (client int, n int, at timestamptz, PRIMARY KEY (client, n))`)
		for _, v := range victims {
			p.insert(t, acked, func() { kill(t, v()) })
			if code := p.end(t); code == 0 { // 137, but for what containerd cannot ask of a dead shim
				t.Error("the container of a killed machine ended well")
			}
			waitFor(t, "the machine's end", func() bool { return len(s.VMMs()) == 0 })
			p = start()
			if !strings.Contains(p.logged(), "automatic recovery in progress") {
				t.Errorf("PostgreSQL had nothing to recover from: %s", p.logged())
			}
			p.check(t, acked)
		}
		// All tables, PostgreSQL's own too, and whether the indices have what the tables have.
		must(t, p.exec(t.Context(), "amcheck", images.PostgresBin+"/pg_amcheck", "-h", "/tmp", "-U", "postgres", "--install-missing", "--heapallindexed", "postgres"))
		must(t, s.Ctr(t.Context(), "task", "kill", "-s", "SIGINT", p.id))
		if code := p.end(t); code != 0 || !strings.Contains(p.logged(), "database system is shut down") {
			t.Errorf("exit code %d, %s", code, p.logged())
		}
	}
	t.Run("bind mount", func(t *testing.T) {
		dir := userDir(t, s, "pg")
		lives(t, bindArg(dir, "/data"), s.VMMs, s.Shims) // the shim serves the files
		if n := ownedByUser(t, dir); n < 900 {           // initdb makes more
			t.Errorf("%d files on the host", n)
		}
	})
	t.Run("block volume", func(t *testing.T) {
		image := filepath.Join(userDir(t, s, "pgdisk"), "v.img")
		must(t, exec.Command(filepath.Join(s.Dir, "bin", "applevm-snapshotter"), "volume", image, "8G"))
		giveToUser(t, image)
		lives(t, []string{"--mount", "type=ext4,src=" + image + ",dst=/data,options=rw:noatime"}, s.VMMs)
		if b, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, b)
		}
	})
}
