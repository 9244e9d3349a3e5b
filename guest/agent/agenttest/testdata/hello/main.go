// Hello is a program for a container of another architecture.
package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Println("hello from", runtime.GOARCH)
	os.Exit(3)
}
