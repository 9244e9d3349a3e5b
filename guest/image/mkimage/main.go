// Mkimage builds a guest image: the kernel, and the initramfs with the agent.
//
//	go run ./guest/image/mkimage -arch amd64 -out DIR
//
// With -env it only prints the environment in which the go command builds the
// agent for the architecture.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/applevm/applevm/guest/image/build"
)

func main() {
	var spec build.Spec
	flag.StringVar(&spec.Arch, "arch", runtime.GOARCH, "the guest's architecture: amd64 or arm64")
	flag.StringVar(&spec.Kernel, "kernel", build.KindAuto, "which kernel: own (built by make kernel), debian, or auto: own if it was built, else debian")
	flag.StringVar(&spec.Init, "init", "", "a static binary to become /init (default: the agent, compiled from this checkout)")
	flag.StringVar(&spec.Out, "out", "", "the directory to write the image into")
	env := flag.Bool("env", false, "print the environment for compiling the agent, and do nothing else")
	flag.Parse()
	if flag.NArg() > 0 || (spec.Out == "") != *env {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	do := mkimage
	if *env {
		do = printEnv
	}
	if err := do(ctx, spec); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func mkimage(ctx context.Context, spec build.Spec) error {
	if spec.Init == "" {
		dir, err := os.MkdirTemp("", "mkimage")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		spec.Init = filepath.Join(dir, "applevm-agent")
		if err := build.BuildAgent(ctx, spec.Arch, spec.Init); err != nil {
			return err
		}
	}
	img, err := build.Build(ctx, spec)
	if err != nil {
		return err
	}
	fmt.Printf("guest image for %s with %s kernel %s in %s\n", img.Arch, img.KernelKind, img.Release, spec.Out)
	return nil
}

func printEnv(ctx context.Context, spec build.Spec) error {
	env, err := build.AgentEnv(ctx, spec.Arch)
	if err != nil {
		return err
	}
	for _, e := range env {
		fmt.Println(e)
	}
	return nil
}
