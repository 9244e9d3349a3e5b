package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// tellEvents has inotifywait tell of events in directories, in /out/events: the kind, the file
// and what it has then.
const tellEvents = `inotifywait -m -q -r -e modify,attrib,create,delete,move --format '%e %w%f' /src /ro |
while read -r what file; do echo "$what $file $(cat "$file" 2>/dev/null)"; done >>/out/events`

// TestFileEvents: what the host does to files of a directory that a container watches raises
// inotify events there, also where the directory is read-only, and who hears of them reads
// what is there now. What the container does itself raises none but its own.
func TestFileEvents(t *testing.T) {
	s := userStack(t)
	importImage(t, s, images.Watchers)
	src, out := userDir(t, s, "src"), userDir(t, s, "out")
	put := func(name, text string) {
		t.Helper()
		write(t, filepath.Join(src, name), text)
	}
	events := func() []string { return strings.Split(readAll(t, filepath.Join(out, "events")), "\n") }
	expect := func(lines ...string) {
		t.Helper()
		for _, l := range lines {
			waitFor(t, fmt.Sprintf("%q", l), func() bool { return slices.Contains(events(), l) })
		}
	}
	// A watch takes a moment until the host knows of it.
	probe := func(file string, dirs ...string) {
		t.Helper()
		for _, dir := range dirs {
			n := 0
			waitFor(t, "an event in "+dir, func() bool {
				n++
				put(file, fmt.Sprint(n))
				time.Sleep(100 * time.Millisecond)
				return slices.ContainsFunc(events(), func(l string) bool { return strings.Contains(l, " "+dir+"/"+file+" ") })
			})
		}
	}
	for _, f := range []string{"a", "b", "sub/c"} {
		put(f, "1st")
	}
	giveToUser(t, filepath.Join(src, "sub"))
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	args := slices.Concat([]string{"-d"}, bindArg(src, "/src"), bindArg(src, "/ro", "ro"), bindArg(out, "/out"))
	must(t, s.CtrRun(t.Context(), append(args, images.WatchersRef, id, "bash", "-c", tellEvents)...))
	if withVZ() {
		probe("probe", "/src")
		probe("sub/probe", "/src")
		testPathEvents(t, src, put, events, expect, func(script string) {
			must(t, s.CtrExec(t.Context(), "--exec-id", "x", id, "bash", "-c", script))
		})
		return
	}
	probe("probe", "/src", "/ro")
	probe("sub/probe", "/src", "/ro")

	// As many bytes as before: the size does not tell.
	put("a", "2nd")
	put("sub/c", "2nd")
	expect("MODIFY /src/a 2nd", "MODIFY /ro/a 2nd", "MODIFY /src/sub/c 2nd", "MODIFY /ro/sub/c 2nd")
	put("new", "new")
	expect("CREATE /src/new new", "CREATE /ro/new new")
	if err := os.Remove(filepath.Join(src, "new")); err != nil {
		t.Fatal(err)
	}
	expect("DELETE /src/new ", "DELETE /ro/new ")
	// As editors save.
	put(".b.tmp", "2nd")
	if err := os.Rename(filepath.Join(src, ".b.tmp"), filepath.Join(src, "b")); err != nil {
		t.Fatal(err)
	}
	expect("CREATE /src/b 2nd", "CREATE /ro/b 2nd")
	if err := os.Chmod(filepath.Join(src, "b"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("ATTRIB /src/b 2nd")
	if err := os.Symlink("a", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	expect("CREATE /src/link 2nd")
	// A directory that is new is watched, too.
	if err := os.Mkdir(filepath.Join(src, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	giveToUser(t, filepath.Join(src, "dir"))
	expect("CREATE,ISDIR /src/dir ", "CREATE,ISDIR /ro/dir ")
	probe("dir/file", "/src")
	if err := os.RemoveAll(filepath.Join(src, "dir")); err != nil {
		t.Fatal(err)
	}
	expect("DELETE,ISDIR /src/dir ", "DELETE,ISDIR /ro/dir ")

	// What the container does is no news to it.
	must(t, s.CtrExec(t.Context(), "--exec-id", "x", id, "bash", "-c", "echo mine >/src/mine && chmod 600 /src/mine && mkdir /src/own && rm /src/a"))
	put("b", "3rd")
	expect("MODIFY /src/b 3rd", "MODIFY /ro/b 3rd")
	var kinds []string
	for _, l := range events() {
		if f := strings.Fields(l); len(f) > 1 && slices.Contains([]string{"/src/mine", "/src/own", "/src/a"}, f[1]) {
			kinds = append(kinds, f[0]+" "+f[1])
		}
	}
	if i := slices.Index(kinds, "CREATE /src/mine"); i < 0 {
		t.Errorf("its own doing: %q", kinds)
	} else if got, want := kinds[i:], []string{"CREATE /src/mine", "MODIFY /src/mine", "ATTRIB /src/mine", "CREATE,ISDIR /src/own", "DELETE /src/a"}; !slices.Equal(got, want) {
		t.Errorf("its own doing raised %q, want %q", got, want)
	}
	// Nothing that was done again for the kernel's sake was done to the host's files.
	for name, want := range map[string]string{"b": "3rd", "sub/c": "2nd", "mine": "mine\n"} {
		if got := readAll(t, filepath.Join(src, name)); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
}

// testPathEvents is the rest of TestFileEvents with macOS's driver: where the framework serves the files,
// all that can be raised is IN_ATTRIB, of a file or, if it is gone, of its directory.
func testPathEvents(t *testing.T, src string, put func(name, text string), events func() []string, expect func(...string), run func(script string)) {
	count := func(line string) (n int) {
		for _, l := range events() {
			if l == line {
				n++
			}
		}
		return n
	}
	put("a", "2nd") // as many bytes as before
	put("sub/c", "2nd")
	expect("ATTRIB /src/a 2nd", "ATTRIB /src/sub/c 2nd")
	put("new", "new")
	expect("ATTRIB /src/new new")
	if n := count("ATTRIB,ISDIR /src/ "); n != 0 {
		t.Errorf("the directory has changed %d times", n)
	}
	if err := os.Remove(filepath.Join(src, "new")); err != nil {
		t.Fatal(err)
	}
	expect("ATTRIB,ISDIR /src/ ")
	put(".b.tmp", "2nd") // as editors save
	if err := os.Rename(filepath.Join(src, ".b.tmp"), filepath.Join(src, "b")); err != nil {
		t.Fatal(err)
	}
	expect("ATTRIB /src/b 2nd")
	if err := os.Mkdir(src+".dir", 0o755); err != nil {
		t.Fatal(err)
	}
	giveToUser(t, src+".dir")
	if err := os.Rename(src+".dir", filepath.Join(src, "dir")); err != nil {
		t.Fatal(err)
	}
	expect("ATTRIB,ISDIR /src/dir ")

	// What the container does is no news to it, nor are attributes.
	gone, a := count("ATTRIB,ISDIR /src/ "), count("ATTRIB /src/a 2nd")
	if err := os.Chmod(filepath.Join(src, "a"), 0o640); err != nil {
		t.Fatal(err)
	}
	run("echo mine >/src/mine && chmod 600 /src/mine && mkdir /src/own && echo more >>/src/sub/c && rm /src/b")
	put("a", "3rd")
	changed, err := os.Stat(filepath.Join(src, "a"))
	if err != nil {
		t.Fatal(err)
	}
	expect("ATTRIB /src/a 3rd")
	want := []string{"CREATE /src/mine", "MODIFY /src/mine", "ATTRIB /src/mine", "CREATE,ISDIR /src/own", "MODIFY /src/sub/c", "DELETE /src/b"}
	var kinds []string
	for _, l := range events() {
		if f := strings.Fields(l); len(f) > 1 && (slices.Contains(want, f[0]+" "+f[1]) || slices.Contains([]string{"/src/mine", "/src/own"}, f[1])) {
			kinds = append(kinds, f[0]+" "+f[1])
		}
	}
	if i := slices.Index(kinds, want[0]); i < 0 || !slices.Equal(kinds[i:], want) {
		t.Errorf("its own doing raised %q, want %q", kinds, want)
	}
	if n := count("ATTRIB,ISDIR /src/ "); n != gone {
		t.Errorf("its directory has changed %d times more", n-gone)
	}
	if n := count("ATTRIB /src/a 2nd"); n != a {
		t.Errorf("attributes raised %d events", n-a)
	}
	// Nothing was done to the host's files.
	is, err := os.Stat(filepath.Join(src, "a"))
	if err != nil || is.Mode() != changed.Mode() || !is.ModTime().Equal(changed.ModTime()) {
		t.Errorf("the file is %v, %v, was %v, %v; %v", is.Mode(), is.ModTime(), changed.Mode(), changed.ModTime(), err)
	}
	for name, want := range map[string]string{"a": "3rd", "sub/c": "2ndmore\n", "mine": "mine\n"} {
		if got := readAll(t, filepath.Join(src, name)); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
}

// TestDevServer: Node reloads a server when its source is edited on the host.
func TestDevServer(t *testing.T) {
	s := newStack(t, stack.Options{Unprivileged: true})
	importImage(t, s, images.Watchers)
	app, port := userDir(t, s, "app"), freePort(t)
	edit := func(version string) {
		t.Helper()
		text := `require("http").createServer((q, a) => a.end("` + version + `")).listen(3000)`
		write(t, filepath.Join(app, "server.js"), text)
	}
	edit("version 1")
	id := name(t)
	t.Cleanup(func() { remove(t, s, id) })
	args := append([]string{"-d", "--annotation", "dev.applevm.publish=127.0.0.1:" + port + ":3000"}, bindArg(app, "/app")...)
	must(t, s.CtrRun(t.Context(), append(args, images.WatchersRef, id, "node", "--watch", "/app/server.js")...))
	serves := func(version string) bool {
		page, _, ok := getPage(port)
		return ok && page == version
	}
	waitFor(t, "the server", func() bool { return serves("version 1") })
	next := time.Now()
	waitFor(t, "the new version", func() bool {
		// Node may begin to watch after it has begun to serve.
		if time.Now().After(next) {
			edit("version 2")
			next = time.Now().Add(10 * time.Second)
		}
		return serves("version 2")
	})
}
