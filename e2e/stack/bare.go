package stack

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
)

// BareDevices are what is in /dev for a Bare stack: what each system has, and the
// hypervisor, which macOS has in another form.
var BareDevices = []string{"null", "zero", "full", "random", "urandom", "tty", "kvm"}

// bareScript makes another /dev, in a mount namespace of its own, at the directory that is
// its first argument, and then runs the others.
var bareScript = `set -e
dev=$1; shift
mount -t tmpfs -o mode=755 dev "$dev"
for n in ` + strings.Join(BareDevices, " ") + `; do
	if [ -e "/dev/$n" ]; then touch "$dev/$n"; mount --bind "/dev/$n" "$dev/$n"; fi
done
mkdir "$dev/pts" "$dev/shm"
mount --rbind /dev/pts "$dev/pts"
mount -t tmpfs -o mode=1777 shm "$dev/shm"
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
mount --move "$dev" /dev
exec "$@"`

// bare has argv run without the devices that macOS has nothing like.
func (s *Stack) bare(argv []string) []string {
	return append([]string{"unshare", "--mount", "--propagation", "private", "sh", s.path("bare.sh"), s.path("dev")}, argv...)
}

// counts counts the commands of clients, by what they do.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

// add counts a client's command by its words before the first flag, at most two, for
// instance "ctr task exec".
func (c *counts) add(client string, args []string) {
	words := []string{client}
	if i := slices.Index(args, "--snapshotter"); i == 1 && len(args) > 2 { // ctr snapshots' own
		args = slices.Delete(slices.Clone(args), i, i+2)
	}
	for _, a := range args {
		if strings.HasPrefix(a, "-") || len(words) == 3 || len(words) == 2 && words[1] == "run" {
			break
		}
		words = append(words, a)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[strings.Join(words, " ")]++
}

// WriteCounts writes how often clients were run and with what commands.
func (s *Stack) WriteCounts(w io.Writer) error {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	all := 0
	for _, n := range s.counts.n {
		all += n
	}
	if _, err := fmt.Fprintf(w, "%d commands of clients, of %d kinds:\n", all, len(s.counts.n)); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(s.counts.n)) {
		if _, err := fmt.Fprintf(w, "  %5d  %s\n", s.counts.n[k], k); err != nil {
			return err
		}
	}
	return nil
}
