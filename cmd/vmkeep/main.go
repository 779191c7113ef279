// Command vmkeep backs up VMware machines into a restic repository. It is the reference host: it loads the program
// vmkeep-plugin, drives it, and shows people and programs what happens.
//
// Streams: results go to standard output, progress and errors to standard error. With --json both are JSON lines
// ("vmkeep help json" tells their schema). Exit codes are restic's ("vmkeep help exit-codes").
package main

import "os"

func main() {
	a := app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: environment{environ: os.Environ(), getenv: os.Getenv}}
	os.Exit(a.run(os.Args[1:]))
}
