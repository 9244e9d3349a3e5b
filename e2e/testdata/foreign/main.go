// Command foreign is built for another architecture, to be run by a translator, and for the machine's
// own as the daemon that keeps translations ("daemon DIR").
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "daemon":
		return serve(args[1])
	case len(args) == 2 && args[0] == "ask":
		c, err := net.Dial("unix", args[1])
		for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); { // it may start just now
			time.Sleep(10 * time.Millisecond)
			c, err = net.Dial("unix", args[1])
		}
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, c)
		return err
	}
	fmt.Println(runtime.GOARCH, os.Geteuid(), strings.Join(args, " "))
	return nil
}

// serve tells whoever connects who it is, and how often it was started with this directory.
func serve(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("."); err != nil {
		return err
	}
	starts, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(dir, "uds/rosetta.sock"))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(c, "user", os.Geteuid(), "start", starts)
		c.Close()
	}
}
