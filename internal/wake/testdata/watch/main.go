// Command watch waits for one wake, of two who ask and one who has gone.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/applevm/applevm/internal/wake"
)

func main() {
	woken := make(chan string, 10)
	gone, cancel := context.WithCancel(context.Background())
	for ctx, name := range map[context.Context]string{context.Background(): "one", context.TODO(): "two", gone: "gone"} {
		if err := wake.Notify(ctx, func() { woken <- name }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	cancel()
	n := 0
	for range 2 {
		select {
		case name := <-woken:
			if name == "gone" {
				fmt.Fprintln(os.Stderr, "called who has gone")
			}
			n++
		case <-time.After(30 * time.Second):
		}
	}
	fmt.Fprintln(os.Stderr, "woken", n)
}
