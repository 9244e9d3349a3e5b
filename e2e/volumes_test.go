package e2e

import "testing"

// A new volume of nerdctl's is filled with what the image has in its place, in the machine:
// without root, and without anything that shows nerdctl the image's files on the host. nerdctl
// itself needs root, so here is what it asks for, asked by ctr.
func TestNewVolumesAreFilledInTheMachine(t *testing.T) {
	s := userStack(t)
	dir := userDir(t, s, "volume")
	args := append([]string{"--rm", "--annotation", `nerdctl/mounts.0={"Type":"volume","Source":"` + dir + `","Destination":"/var/cache","RW":true}`}, bindArg(dir, "/var/cache")...)
	run := func(script string) string {
		t.Helper()
		return must(t, s.CtrRun(t.Context(), append(args[:len(args):len(args)], img, name(t), "sh", "-ec", script)...))
	}
	// apt's directory is _apt's, and closed to others.
	const list = `cd /var/cache; find . | sort; stat -c '%U %a' apt/archives/partial`
	want := must(t, s.CtrRun(t.Context(), "--rm", img, name(t), "sh", "-ec", list))
	if got := run(list + "; rm -r ldconfig; touch mine"); got != want {
		t.Errorf("a new volume: %s\nwant %s", got, want)
	}
	if got := run("cd /var/cache; if test -e ldconfig; then echo filled; fi; ls mine"); got != "mine\n" {
		t.Errorf("a volume in use was filled again: %s", got)
	}
}
