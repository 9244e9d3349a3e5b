// Command probe is what tests run inside containers to see, and to make, what a
// shell in a small image cannot.
//
//	probe list         lists files, with all about them
//	probe setxattr PATH NAME VALUE
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/treelist"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "list":
		lines, err := treelist.List("/", treelist.Options{Skip: []string{
			// What a runtime mounts over is not the image's.
			"etc/hosts", "etc/hostname", "etc/resolv.conf", "run",
			// No test changes these, and they take an emulated guest a minute.
			"usr/lib", "usr/share/doc", "usr/share/perl", "usr/share/perl5", "usr/share/zoneinfo", "var/lib/dpkg",
		}})
		if err != nil {
			return err
		}
		_, err = fmt.Println(strings.Join(lines, "\n"))
		return err
	case len(args) == 4 && args[0] == "setxattr":
		return unix.Setxattr(args[1], args[2], []byte(args[3]), 0)
	}
	return fmt.Errorf("unknown command %q", args)
}
