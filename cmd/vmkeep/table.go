package main

import (
	"io"
	"strings"
	"unicode/utf8"
)

// grid is a table for people: columns aligned by the widest cell, two spaces between them.
type grid struct {
	head []string // a name that begins with ">" makes its column flush right
	rows [][]string
}

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) write(w io.Writer) {
	right := make([]bool, len(g.head))
	width := make([]int, len(g.head))
	head := make([]string, len(g.head))
	for i, name := range g.head {
		head[i], right[i] = strings.CutPrefix(name, ">")
		width[i] = utf8.RuneCountInString(head[i])
	}
	for _, row := range g.rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range append([][]string{head}, g.rows...) {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
		}
		io.WriteString(w, strings.TrimRight(line.String(), " ")+"\n")
	}
}
