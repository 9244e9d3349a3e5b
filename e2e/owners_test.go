package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/e2e/stack"
)

// An ordinary user's containers give the files of a shared directory to whom they like, as
// databases and package managers do, and find it so later. On the host all is the user's.
func TestOwnersOfAnOrdinaryUsersFiles(t *testing.T) {
	s := userStack(t)
	dir := userDir(t, s, "owners")
	if err := os.WriteFile(filepath.Join(dir, "from-host"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	giveToUser(t, filepath.Join(dir, "from-host"))
	run := func(script string) string {
		t.Helper()
		args := append([]string{"--rm"}, bindArg(dir, "/data")...)
		return must(t, s.CtrRun(t.Context(), append(args, img, name(t), "bash", "-ec", "cd /data\n"+script)...))
	}
	const list = `stat -c '%n %u:%g %a' . from-host data data/base data/V tree tree/etc tree/etc/passwd www`
	// What PostgreSQL's image does at its first start, and what unpacking a package does.
	got := run(`install -d -o 999 -g 998 -m 700 data
as() { setpriv --reuid $1 --regid $1 --clear-groups "${@:2}"; }
as 999 bash -ec 'cd data; umask 077; mkdir base; echo 15 >new; chmod 640 new; mv new V; ln -s V link; cat link'
as 33 cat data/V 2>&1 | sed 's/.*: //'
tar -C / --owner=1000 --group=50 --mode=4711 -cf /tmp/t.tar etc/passwd
mkdir tree; tar -C tree -xpf /tmp/t.tar; chown -R 7:7 tree/etc; chmod 4755 tree/etc/passwd
install -d -o 33 -g 33 -m 2775 www; as 33 touch www/page; stat -c '%u:%g' www/page
` + list)
	want := ". 0:0 755\nfrom-host 0:0 644\ndata 999:998 700\ndata/base 999:999 700\ndata/V 999:999 640\ntree 0:0 755\ntree/etc 7:7 755\ntree/etc/passwd 7:7 4755\nwww 33:33 2775\n"
	if want := "15\nPermission denied\n33:33\n" + want; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := run(list); got != want {
		t.Errorf("in another container: got %s\nwant %s", got, want)
	}
	if n := ownedByUser(t, dir); n != 11 {
		t.Errorf("%d files on the host", n)
	}
}

// ownedByUser requires that on the host all in a directory of an ordinary user's is that
// user's, and nothing has set-ID bits; it returns how many files there are.
func ownedByUser(t *testing.T, dir string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Uid != stack.Nobody || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			t.Errorf("%s has owner %d and mode %o on the host", strings.TrimPrefix(path, dir), st.Uid, st.Mode)
		}
		files++
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return files
}
