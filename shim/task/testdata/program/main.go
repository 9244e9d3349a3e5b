// Command program is what the tests' containers run: one static binary whose
// first argument says what to do.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch os.Args[1] {
	case "true":
	case "exit": // exit CODE
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case "echo": // echo TEXT...
		fmt.Println(strings.Join(os.Args[2:], " "))
	case "both": // one line on each output
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
	case "cat": // stdin to stdout, or the named file
		in := io.Reader(os.Stdin)
		if len(os.Args) > 2 {
			f, err := os.Open(os.Args[2])
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			in = f
		}
		_, _ = io.Copy(os.Stdout, in)
	case "flood": // flood BYTES
		n, _ := strconv.Atoi(os.Args[2])
		line := bytes.Repeat([]byte("0123456789abcde\n"), 256)
		for ; n > 0; n -= len(line) {
			_, _ = os.Stdout.Write(line[:min(n, len(line))])
		}
	case "sleep": // until SIGTERM, which makes it exit 3
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGTERM)
		fmt.Println("ready")
		select {
		case <-ch:
			os.Exit(3)
		case <-time.After(10 * time.Minute):
		}
	case "write": // write FILE TEXT
		if err := os.WriteFile(os.Args[2], []byte(os.Args[3]), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "ps": // the command lines of all others
		names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range names {
			if b, _ := os.ReadFile(name); len(b) > 0 && name != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
				fmt.Println(strings.Join(strings.Split(strings.TrimRight(string(b), "\x00"), "\x00"), " "))
			}
		}
	case "crash": // panic the kernel
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	}
}
