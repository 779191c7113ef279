package nfc_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// Everything that the double can do wrong is done in a test: each field of a scenario, and each fault of a read.
func TestEveryKnobIsTurned(t *testing.T) {
	turned := map[string]bool{}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasPrefix(name, "bench") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			for _, e := range c.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if key, ok := kv.Key.(*ast.Ident); ok {
						turned[key.Name] = true
					}
				}
			}
			return true
		})
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[nfctest.Scenario]()) {
		if !turned[f.Name] {
			t.Errorf("no test sets %s", f.Name)
		}
	}
}
