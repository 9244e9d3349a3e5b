// Mkkernel builds our own guest kernel into the cache, from where mkimage takes it.
//
//	go run ./guest/image/mkkernel -arch amd64
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/applevm/applevm/guest/image/build"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "the guest's architecture: amd64 or arm64")
	jobs := flag.Int("jobs", 0, "how many compilers run at a time; 0 is one per CPU")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	start := time.Now()
	k, err := build.BuildKernel(ctx, *arch, *jobs, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkkernel:", err)
		os.Exit(1)
	}
	fmt.Printf("kernel %s for %s from source %s: %s (%v)\n", k.Release, *arch, k.Source, k.Path(), time.Since(start).Round(time.Second))
}
