package e2e

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

// settings prints what the flags of `run` have set.
const settings = `
echo "== --hostname"; hostname; cat /etc/hostname
echo "== --domainname"; cat /proc/sys/kernel/domainname
echo "== --add-host"; grep -v '^$' /etc/hosts
echo "== --dns"; cat /etc/resolv.conf
echo "== --env"; env | grep ^MATRIX_ | sort
echo "== --workdir"; pwd; stat -c "%a %u %g" .
echo "== --user"; id
echo "== --umask"; umask
echo "== --ulimit"; ulimit -n; ulimit -Hn; ulimit -c
echo "== --sysctl"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced
echo "== --shm-size"; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2,6; grep ' /dev/shm ' /proc/mounts | cut -d' ' -f2-
echo "== --tmpfs"; grep ' /scratch ' /proc/mounts | cut -d' ' -f2-; stat -c %a /scratch
echo "== capabilities"; grep ^Cap /proc/self/status
echo "== seccomp and privileges"; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
echo "== --oom-score-adj"; cat /proc/self/oom_score_adj
echo "== mounts"; awk '$2 != "/" {print $2, $3, $4}' /proc/mounts | grep -vE '^/sys/fs/cgroup|^/proc/(acpi|scsi|sysrq-trigger) ' | sed -E 's/,(size=[0-9]+k|nr_inodes=[0-9]+|inode64|gid=5|mode=755)//g; s,^(/etc/[a-z.]*) .*,\1,' | sort
echo "== devices"; ls -l /dev | awk '{print $1, $3, $4, $NF}' | sort
echo "== masked paths"; for f in /proc/kcore /proc/keys /proc/timer_list /proc/sysrq-trigger; do cat $f 2>/dev/null | head -c 1 | wc -c; done; ls /sys/firmware; echo x 2>/dev/null >/proc/sysrq-trigger || echo read-only
echo "== processes"; list=$(ps -eo ppid,user,comm); echo "$list" | tr -s ' '
echo "== namespaces"; for n in ipc mnt net pid uts cgroup user; do readlink /proc/self/ns/$n | cut -d: -f1; done
echo "== network"; ls /sys/class/net; cat /proc/net/route | wc -l
`

// limits prints a container's limits, by cgroup version 2's names, or version 1's if that
// is what the host has. With the latter, nerdctl gives a container no cgroup namespace: its cgroup
// is somewhere below /sys/fs/cgroup.
const limits = `
cd /sys/fs/cgroup$(sed -n s,^0::,,p /proc/self/cgroup) 2>/dev/null; [ -e memory.max ] || cd /sys/fs/cgroup
show() { for f; do [ -e $f ] && { cat $f; return; }; done; echo none; }
echo "== --memory"; show memory.max memory/memory.limit_in_bytes
echo "== --memory-reservation"; show memory.low memory/memory.soft_limit_in_bytes
echo "== --cpus"; [ -e cpu.max ] && cat cpu.max || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)
echo "== --cpu-shares"; show cpu.weight cpu/cpu.shares
echo "== --pids-limit"; show pids.max pids/pids.max
echo "== --cpuset-cpus"; show cpuset.cpus.effective cpuset/cpuset.cpus
`

// sorted makes the order of lines no matter.
func sorted(s string) string {
	l := strings.Split(s, "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}

// ownImages leaves out the images that other tests have put beside applevm's.
func ownImages(s string) string {
	return sorted(replacing(`(?m)^debian probe\n`, "")(s))
}

func replacing(pairs ...string) func(string) string {
	return func(s string) string {
		for i := 0; i < len(pairs); i += 2 {
			s = regexp.MustCompile(pairs[i]).ReplaceAllString(s, pairs[i+1])
		}
		return s
	}
}

// answers keeps what the tests' commands at a terminal have printed.
func answers(s string) string {
	return strings.Join(regexp.MustCompile(`(?m)^at\d\b`).FindAllString(s, -1), "\n")
}

// compose makes the arguments of nerdctl compose, in a project with the file compose.yaml.
func compose(args ...string) []string {
	return append([]string{"compose", "-p", "matrix", "-f", "{dir}/compose.yaml"}, args...)
}

// notCopied leaves out the files that cp has copied into a container, where it can; and the
// permissions of a file under a mount, which is empty.
func notCopied(s string) string {
	return sorted(replacing(`(?m)^.*tmp/(copied|later).*\n?`, "", `etc/(hosts|hostname|resolv.conf) \d+ 0`, "etc/$1")(s))
}

// composeStates keeps of the JSON that compose ps prints names and states.
func composeStates(s string) string {
	var states []string
	for _, c := range strings.Split(s, "},") {
		states = append(states, strings.Join(regexp.MustCompile(`"(Name|State|ExitCode)":[^,}]*`).FindAllString(c, -1), " "))
	}
	slices.Sort(states)
	return strings.Join(states, "\n")
}

func file(name, content string) step { return step{do: writeFile(name, content)} }

// matrix is all scenes.
var matrix = []scene{
	{"flags", []step{
		file("env", "MATRIX_FILE=from a file\n"),
		file("labels", "from=file\n"),
		{name: "run with many flags", sections: true, args: []string{"run", "--rm", "--name", "flags",
			"--hostname", "box", "--domainname", "example.org", "--add-host", "friend:10.1.2.3", "--dns", "10.9.8.7", "--dns-search", "corp", "--dns-opt", "ndots:2",
			"-e", "MATRIX_ENV=a b", "--env-file", "{dir}/env", "-w", "/made/by/workdir", "--umask", "0027",
			"--ulimit", "nofile=123:456", "--ulimit", "core=0", "--sysctl", "net.ipv4.ip_unprivileged_port_start=80", "--sysctl", "kernel.shm_rmid_forced=1",
			"--shm-size", "32m", "--tmpfs", "/scratch:size=1m,mode=1770", "--cap-drop", "CHOWN", "--cap-add", "SYS_TIME",
			"--security-opt", "no-new-privileges", "--oom-score-adj", "100", "--group-add", "2000",
			img, "sh", "-c", settings}},
		{name: "run with no flags", sections: true, args: []string{"run", "--rm", img, "sh", "-c", strings.ReplaceAll(settings, "== ", "== default ")}},
		{name: "run with limits", sections: true, args: []string{"run", "--rm", "-m", "128m", "--memory-reservation", "64m", "--cpus", "0.5", "--cpu-shares", "512",
			"--pids-limit", "50", "--cpuset-cpus", "0", img, "sh", "-c", limits}},
		{name: "--privileged", sections: true, args: []string{"run", "--rm", "--privileged", img, "sh", "-c", `
echo "== --privileged: capabilities"; grep ^Cap /proc/self/status
echo "== --privileged: seccomp"; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
echo "== --privileged: mount"; mkdir /m && mount -t tmpfs t /m && touch /m/file && ls /m
echo "== --privileged: /proc and /sys are writable"; sysctl -w kernel.msgmax=8191; grep -E ' /sys ' /proc/mounts | cut -d' ' -f2-
`}},
		{name: "--user with --read-only, --init and --entrypoint", sections: true, args: []string{"run", "--rm", "--user", "app", "--read-only", "--init", "--entrypoint", "sh", img, "-c", `
echo "== --user by name"; id; echo $HOME
echo "== --read-only"; touch /file 2>&1 || touch /tmp/file 2>&1
echo "== --init"; cat /proc/1/comm; (sleep 0.1 &) ; sleep 0.5; ps -eo stat,comm | grep -c ^Z
`}},
		{name: "--pid host, --ipc private", args: []string{"run", "--rm", "--pid", "host", "--ipc", "private", img, "sh", "-c",
			"[ $$ -gt 1 ] && echo own pid is not 1; [ -d /proc/1 ] && echo there is a process 1"}},
	}},
	{"more flags", []step{
		{name: "run with more flags", sections: true, args: []string{"run", "--rm", "--device", "/dev/zero:/dev/myzero:r", "--user", "1234:5678",
			"--security-opt", "seccomp=unconfined", "--cpu-quota", "30000", "--cpu-period", "60000", "--memory-swap", "256m", "-m", "128m",
			"--read-only", "--tmpfs", "/run", "--cap-add", "ALL", img, "sh", "-c", `
echo "== --device"; ls -l /dev/myzero | awk '{print $1, $3, $4, $5, $6}'
echo "== --user by number"; id
echo "== seccomp=unconfined"; grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status
echo "== --cap-add ALL"; grep -E '^Cap(Prm|Bnd)' /proc/self/status
cd /sys/fs/cgroup$(sed -n s,^0::,,p /proc/self/cgroup) 2>/dev/null; [ -e memory.max ] || cd /sys/fs/cgroup
echo "== --cpu-quota"; [ -e cpu.max ] && cat cpu.max || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)
echo "== --memory-swap"; [ -e memory.max ] && cat memory.max || cat memory/memory.limit_in_bytes
`}},
		{name: "--device: the device cgroup", args: []string{"run", "--rm", "--device", "/dev/zero:/dev/myzero:r", img, "sh", "-c",
			"head -c 2 /dev/myzero | wc -c; (echo x >/dev/myzero) 2>&1; mknod /sda b 8 0; (: </sda) 2>&1"}},
		{name: "--init-binary", args: []string{"run", "--rm", "--init-binary", "tini", img, "sh", "-c", "cat /proc/1/comm; exit 3"}},
		{name: "--init: a signal", args: []string{"run", "-d", "--name", "init", "--init", img, "sh", "-c", "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.1; done"}, only: "code"},
		{until: "ready", args: []string{"logs", "init"}},
		{name: "--init: stop", args: []string{"stop", "init"}},
		{name: "--init: logs", args: []string{"logs", "init"}},
		{name: "--init: exit code", args: []string{"inspect", "--format", "{{.State.ExitCode}}", "init"}},
	}},
	// One can attach only to a container that was run without -d: with it, the output goes to the log alone.
	{"attach", []step{
		{name: "run -it and detach", keys: []string{"tick→echo at$((1+1))\n", "at2→\x10\x11"}, normal: answers,
			args: []string{"run", "-t", "-i", "--name", "tty", img, "sh", "-c", "while sleep 0.3; do echo tick; done & exec sh"}},
		{name: "run -it and detach: it goes on", args: []string{"inspect", "--format", "{{.State.Status}}", "tty"}},
		{name: "attach and detach", keys: []string{"tick→echo at$((1+2))\n", "at3→\x10\x11"}, args: []string{"attach", "tty"}, normal: answers},
		{name: "attach: it goes on", args: []string{"inspect", "--format", "{{.State.Status}}", "tty"}},
		{name: "attach --detach-keys", keys: []string{"tick→echo at$((1+3))\n", "at4→\x01"}, args: []string{"attach", "--detach-keys", "ctrl-a", "tty"}, normal: answers},
		{name: "attach and exit", keys: []string{"tick→echo at$((1+4)); exit 5\n", "at5→"}, args: []string{"attach", "tty"}, normal: answers},
		{name: "attach: its exit code", args: []string{"inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "tty"}},
		{name: "attach to a stopped container", fails: true, args: []string{"attach", "tty"}, only: "code"},
	}},
	{"compose", []step{
		{do: defaultNetwork},
		file("compose.yaml", `services:
  web:
    image: `+img+`
    runtime: {runtime}
    network_mode: none
    environment: {COLOUR: blue}
    hostname: box
    stop_grace_period: 2s
    command: ["sh", "-c", "echo ready $$COLOUR; trap 'exit 3' TERM; while :; do sleep 0.1; done"]
  once:
    image: `+img+`
    runtime: {runtime}
    network_mode: none
    depends_on: [web]
    command: ["echo", "done"]
`),
		{name: "compose up -d", only: "code", args: compose("up", "-d")},
		{name: "compose ps", until: `"exited"`, args: compose("ps", "-a", "--format", "json"), normal: composeStates},
		{name: "compose logs", until: "done", args: compose("logs", "--no-color"), normal: sorted},
		{name: "compose exec", args: compose("exec", "-T", "web", "sh", "-c", "hostname; echo $COLOUR")},
		{name: "compose exec: exit code", fails: true, only: "code", args: compose("exec", "-T", "web", "sh", "-c", "exit 7")},
		{name: "compose stop", only: "code", args: compose("stop", "web")},
		{name: "compose start", only: "code", args: compose("start", "web")},
		{name: "compose exec after start", args: compose("exec", "-T", "web", "hostname")},
		{name: "compose down", only: "code", args: compose("down")},
		{name: "ps -a after compose down", args: []string{"ps", "-aq"}},
	}},
	{"run", []step{
		{name: "run: exit code and output", args: []string{"run", "--rm", img, "sh", "-c", "echo out; echo err >&2; exit 42"}},
		// With runc, an input that ends before the task is made is never closed: no "cat".
		{name: "run -i", stdin: "some input\n", args: []string{"run", "--rm", "-i", img, "sh", "-c", "read line; echo $line"}},
		{name: "run -t -i", keys: []string{"# →until stty size | grep -v ^0; do :; done; tty; exit 3\n"}, args: []string{"run", "--rm", "-t", "-i", "-e", "PS1=# ", img, "sh"}},
		{name: "run: no such command", fails: true, args: []string{"run", "--name", "nosuch", img, "nosuch"}, only: "code"},
		{name: "ps -a after no such command", args: []string{"ps", "-a", "--format", "{{.Names}} {{.Status}}"}},
		{args: []string{"rm", "-f", "nosuch"}},
		{name: "run: no such working directory's user", args: []string{"run", "--rm", "--user", "nosuch", img, "true"}},
		{name: "run: bad signal", fails: true, args: []string{"run", "--rm", "--stop-signal", "NOSUCH", img, "true"}, only: "code"},
		{name: "run: killed by a signal", fails: true, args: []string{"run", "--rm", img, "sh", "-c", "sleep 100 & kill -9 $!; wait $!"}, only: "code"},
		{name: "run --cidfile --pidfile --label --annotation", only: "code", args: []string{"run", "-d", "--name", "files", "--cidfile", "{dir}/cid", "--pidfile", "{dir}/pid",
			"--label", "one=1", "--annotation", "two=2", "--stop-signal", "SIGUSR1", "--stop-timeout", "1", img, "sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"}},
		{until: "ready", args: []string{"logs", "files"}},
		{name: "the files of --cidfile and --pidfile", do: readFiles("cid", "pid"), normal: replacing(`(?m)^\d+$`, "PID")},
		{name: "inspect: labels", args: []string{"inspect", "--format", `{{index .Config.Labels "one"}}`, "files"}},
		{name: "stop with --stop-signal", args: []string{"stop", "files"}},
		{name: "wait after the end", args: []string{"wait", "files"}},
		{name: "inspect: exit code", args: []string{"inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.Running}}", "files"}},
		{name: "rm", args: []string{"rm", "files"}},
	}},
	{"running", []step{
		{name: "run -d", args: []string{"run", "-d", "--name", "web", "--hostname", "web", "--label", "app=web", "--health-cmd", "test -e /healthy", "--health-interval", "0s", img, "sh", "-c",
			"echo mine >/tmp/own; mkdir /etc/new; rm /etc/issue; echo ready; echo warned >&2; trap 'echo hup' HUP; trap 'exit 7' TERM; while :; do sleep 0.1; done"}},
		{name: "logs", until: "warned", args: []string{"logs", "web"}},
		// Which of two lines on two streams is the last is chance.
		{name: "logs --tail", only: "code", args: []string{"logs", "--tail", "1", "web"}},
		{name: "logs -t", args: []string{"logs", "-t", "web"}},
		{name: "logs --since", args: []string{"logs", "--since", "1h", "web"}},
		{name: "logs --since, none", args: []string{"logs", "--since", "2099-01-01T00:00:00Z", "web"}},
		{name: "exec", args: []string{"exec", "web", "echo", "hi"}},
		{name: "exec: exit code", args: []string{"exec", "web", "sh", "-c", "echo e >&2; exit 5"}},
		{name: "exec: no such command", fails: true, args: []string{"exec", "web", "nosuch"}, only: "code"},
		{name: "exec -i", stdin: "words\n", args: []string{"exec", "-i", "web", "cat"}},
		{name: "exec -u -w -e", args: []string{"exec", "-u", "app", "-w", "/tmp", "-e", "A=b", "web", "sh", "-c", "id; pwd; echo $A"}},
		file("env", "FILE=yes\n"),
		{name: "exec --env-file", args: []string{"exec", "--env-file", "{dir}/env", "web", "sh", "-c", "echo $FILE"}},
		{name: "exec --privileged", args: []string{"exec", "--privileged", "web", "grep", "CapEff", "/proc/self/status"}},
		{name: "exec: capabilities", args: []string{"exec", "web", "grep", "Cap", "/proc/self/status"}},
		{name: "exec -it", keys: []string{"# →until stty size | grep -v ^0; do :; done; exit 4\n"}, args: []string{"exec", "-i", "-t", "-e", "PS1=# ", "web", "sh"}},
		{name: "exec -d", args: []string{"exec", "-d", "web", "touch", "/detached"}},
		{name: "exec -d has run", until: "detached", args: []string{"exec", "web", "ls", "/detached"}},
		{name: "ps", args: []string{"ps", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.Status}} {{.Ports}}"}},
		{name: "ps --filter", args: []string{"ps", "-q", "--filter", "label=app=web", "--filter", "status=running", "--filter", "name=web"}},
		{name: "ps --filter, none", args: []string{"ps", "-q", "--filter", "label=app=other"}},
		{name: "inspect", args: []string{"inspect", "--format", "{{json .State.Running}} {{.Config.Hostname}} {{.Path}} {{json .Args}} {{json .HostConfig.NetworkMode}} {{.Name}} {{.Platform}}", "web"}},
		{name: "inspect --mode=native", args: []string{"container", "inspect", "--mode", "native", "--format", "{{.Process.Status.Status}} {{.Spec.process.cwd}} {{.Spec.hostname}}", "web"}},
		{name: "port", args: []string{"port", "web"}},
		{name: "healthcheck", args: []string{"container", "healthcheck", "web"}},
		{name: "top", args: []string{"top", "web"}, normal: replacing(`(?m)^root +\d+ +\d+ .* (\S+)$`, "root PIDS $1")},
		{name: "stats --no-stream", limit: 20 * time.Second, args: []string{"stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "web"}},
		{name: "cp from a running container", do: copyOut("web:/etc/debian_version")},
		{name: "cp to a running container", do: copyIn("web:/tmp/copied")},
		{name: "cp to a running container: in it", args: []string{"exec", "web", "cat", "/tmp/copied"}},
		{name: "cp from a running container: a directory to standard output", args: []string{"cp", "web:/etc/default/useradd", "-"}},
		{name: "cp a directory to a running container and out of it", do: copyTree("web")},
		{name: "cp from a running container: no such file", args: []string{"cp", "web:/nosuch", "{dir}/nosuch"}},
		{name: "update", args: []string{"update", "--memory", "200m", "web"}},
		{name: "update: it holds", args: []string{"exec", "web", "sh", "-c", `cd /sys/fs/cgroup$(sed -n s,^0::,,p /proc/self/cgroup) 2>/dev/null; [ -e memory.max ] || cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes`}},
		{name: "pause", args: []string{"pause", "web"}},
		{name: "ps of a paused container", args: []string{"ps", "--format", "{{.Names}} {{.Status}}"}},
		{name: "diff of a paused container", args: []string{"diff", "web"}, normal: notCopied},
		{name: "export of a paused container", do: export("web"), normal: notCopied},
		{name: "exec in a paused container", fails: true, args: []string{"exec", "web", "true"}, only: "code"},
		{name: "unpause", args: []string{"unpause", "web"}},
		{name: "kill -s HUP", args: []string{"kill", "-s", "HUP", "web"}},
		{name: "kill by number", args: []string{"kill", "-s", "1", "web"}},
		{name: "logs after the signal", until: "hup", args: []string{"logs", "web"}},
		{name: "rename", args: []string{"rename", "web", "www"}},
		{name: "run: name in use", fails: true, args: []string{"run", "--name", "www", img, "true"}, only: "code"},
		{name: "rm of a running container", args: []string{"rm", "www"}},
		{name: "commit", args: []string{"commit", "www", "matrix:committed"}, normal: replacing("sha256:ID", "DIGEST")},
		{name: "diff of a running container", args: []string{"diff", "www"}, normal: notCopied},
		{name: "export of a running container", do: export("www"), normal: notCopied},
		{name: "restart", args: []string{"restart", "-t", "5", "www"}},
		{name: "inspect after restart", args: []string{"inspect", "--format", "{{.State.Status}} {{.RestartCount}}", "www"}},
		{name: "exec after restart", args: []string{"exec", "www", "ls", "/detached"}},
		{name: "stop", args: []string{"stop", "-t", "5", "www"}},
		{name: "ps -a after stop", args: []string{"ps", "-a", "--format", "{{.Names}} {{.Status}}"}},
		{name: "exec in a stopped container", fails: true, args: []string{"exec", "www", "true"}, only: "code"},
		{name: "top of a stopped container", args: []string{"top", "www"}},
		{name: "cp from a stopped container", do: copyOut("www:/etc/debian_version")},
		{name: "cp from a stopped container: its own file", do: copyOut("www:/tmp/own")},
		{name: "cp from a stopped container: a directory to standard output", args: []string{"cp", "www:/etc/default/useradd", "-"}},
		{name: "cp from a stopped container: no such file", args: []string{"cp", "www:/nosuch", "{dir}/nosuch"}},
		{name: "cp to a stopped container", do: copyIn("www:/tmp/later")},
		{name: "diff of a stopped container", args: []string{"diff", "www"}, normal: notCopied},
		{name: "export of a stopped container", do: export("www"), normal: notCopied},
		{name: "start", args: []string{"start", "www"}},
		{name: "cp to a stopped container: in it", args: []string{"exec", "www", "cat", "/tmp/later"}},
		{name: "rm -f", args: []string{"rm", "-f", "www"}},
		{name: "history", args: []string{"history", "--format", "{{.CreatedBy}} {{.Comment}}", "matrix:committed"}},
		{name: "run of a committed image", args: []string{"run", "--rm", "matrix:committed", "sh", "-c", "cat /tmp/own; ls /detached /etc/issue"}},
		{name: "rmi", args: []string{"rmi", "matrix:committed"}, normal: replacing("sha256:ID", "DIGEST")},
	}},
	{"volumes", []step{
		{name: "run -v NAME:DIR", args: []string{"run", "--rm", "-v", "kept:/data", img, "sh", "-c", "echo one >/data/file; chown 5:6 /data/file; ln -s file /data/link; stat -c '%a %u %g %s' /data/file"}},
		{name: "run -v NAME:DIR:ro", fails: true, args: []string{"run", "--rm", "-v", "kept:/data:ro", img, "sh", "-c", "ls -l --time-style=+ /data; cat /data/link; echo two 2>&1 >/data/file"}},
		{name: "run --mount type=volume", args: []string{"run", "--rm", "--mount", "type=volume,src=kept,dst=/a/b", img, "sh", "-c", "cat /a/b/file; rm /a/b/link; ls /a/b"}},
		{name: "run -v NAME:DIR of the image's", args: []string{"run", "--rm", "-v", "fresh:/usr/share/base-files", img, "sh", "-c", "ls /usr/share/base-files | head -3; rmdir /usr/share/base-files 2>/dev/null; true"}},
		{args: []string{"create", "--name", "source", "-v", "kept:/data", "-v", "owned:/var", img}},
		{name: "run with mounts", sections: true, args: []string{"run", "--rm", "--volumes-from", "source", "--mount", "type=bind,src={dir},dst=/bound",
			"--mount", "type=bind,src={dir},dst=/bound-ro,readonly", "--mount", "type=tmpfs,dst=/small,tmpfs-size=1m,tmpfs-mode=1770", img, "sh", "-c", `
echo "== --volumes-from"; cat /data/file; stat -c '%a %u %g' /data/file
echo "== run -v NAME:DIR of the image's: owners"; stat -c '%n %a %u %g' /var /var/mail /var/local /var/cache/apt/archives/partial
echo "== --mount type=bind"; echo bound >/bound/by-mount && cat /bound-ro/by-mount; stat -c '%a %u %g %s' /bound/by-mount
echo "== --mount type=bind,readonly"; (echo no >/bound-ro/by-mount) 2>&1; rm /bound/by-mount
echo "== --mount type=tmpfs"; grep ' /small ' /proc/mounts | cut -d' ' -f2-; stat -c %a /small
`}},
		{args: []string{"rm", "source"}},
		{name: "volume ls", args: []string{"volume", "ls", "-q"}, normal: sorted},
		{name: "volume rm", args: []string{"volume", "rm", "kept", "fresh", "owned"}},
	}},
	{"create", []step{
		{name: "create", args: []string{"create", "--name", "made", "-v", "/anonymous", img, "sh", "-c", "echo started >/file; cat /file; ls -d /anonymous"}},
		{name: "export of a container that was never started", do: export("made"), normal: notCopied},
		{name: "inspect after create", args: []string{"inspect", "--format", "{{.State.Status}}", "made"}},
		{name: "start -a", args: []string{"start", "-a", "made"}},
		{name: "wait", args: []string{"wait", "made"}},
		{name: "logs of a container that has ended", args: []string{"logs", "-f", "made"}},
		{name: "inspect after the end", args: []string{"inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "made"}},
		{name: "container prune", args: []string{"container", "prune", "-f"}},
		{name: "ps -a after prune", args: []string{"ps", "-aq"}},
	}},
	{"logs", []step{
		{args: []string{"run", "-d", "--name", "talk", img, "sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done"}},
		{name: "logs -f", args: []string{"logs", "-f", "talk"}},
		{args: []string{"run", "-d", "--name", "file", "--log-driver", "json-file", "--log-opt", "max-size=1k", "--log-opt", "max-file=2", img, "seq", "1", "200"}},
		{args: []string{"wait", "file"}},
		{name: "--log-opt max-size", args: []string{"logs", "--tail", "2", "file"}},
		{args: []string{"run", "-d", "--name", "quiet", "--log-driver", "none", img, "echo", "unheard"}},
		{name: "--log-driver none", args: []string{"logs", "quiet"}},
	}},
	{"restart policy", []step{
		{args: []string{"run", "-d", "--name", "again", "--restart", "on-failure:2", img, "sh", "-c", "echo run; exit 3"}},
		// nerdctl warns of a task that it does not find between two runs.
		{name: "--restart on-failure", until: "2 restarts", only: "stdout", args: []string{"inspect", "--format", "{{.RestartCount}} restarts", "again"}},
		// Else containerd may start it once more while nerdctl removes it, and its shim stays, runc's too.
		{until: "run\nrun\nrun\n", args: []string{"logs", "again"}},
		{until: "exited", args: []string{"inspect", "--format", "{{.State.Status}}", "again"}},
		{name: "rm -f of a container that restarted", args: []string{"rm", "-f", "again"}},
	}},
	{"events", []step{
		{name: "events", do: eventsOf([]string{"run", "--name", "ev", img, "true"}, []string{"rm", "ev"})},
	}},
	{"images", []step{
		{name: "image inspect", args: []string{"image", "inspect", "--format", "{{.Architecture}} {{.Os}} {{json .Config.Cmd}} {{json .RootFS}} {{json .RepoTags}}", img}},
		{name: "tag", args: []string{"tag", img, "{registry}/matrix:one"}},
		{name: "push", only: "code", args: []string{"push", "--insecure-registry", "{registry}/matrix:one"}},
		{name: "rmi of a tag", args: []string{"rmi", "{registry}/matrix:one"}, normal: replacing("sha256:ID", "DIGEST")},
		{name: "pull", only: "code", args: []string{"pull", "--insecure-registry", "{registry}/matrix:one"}},
		{name: "run of a pulled image", args: []string{"run", "--rm", "{registry}/matrix:one", "cat", "/etc/debian_version"}},
		{name: "save", args: []string{"save", "-o", "{dir}/saved.tar", "{registry}/matrix:one"}},
		{args: []string{"rmi", "{registry}/matrix:one"}},
		{name: "load", args: []string{"load", "-i", "{dir}/saved.tar"}, only: "code"},
		{name: "images", args: []string{"images", "--format", "{{.Repository}} {{.Tag}}"}, normal: ownImages},
		{name: "system prune", only: "code", args: []string{"system", "prune", "-f"}},
		{name: "images after prune", args: []string{"images", "--format", "{{.Repository}} {{.Tag}}"}, normal: ownImages},
		{args: []string{"rmi", "-f", "{registry}/matrix:one"}},
	}},
}
