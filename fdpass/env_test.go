package fdpass

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestEnv: what a worker finds in its environment is explained in the protocol and in the page about workers.
func TestEnv(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "env.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, name := range []string{"doc.go", "../worker/README.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
	found := 0
	ast.Inspect(file, func(node ast.Node) bool {
		if literal, ok := node.(*ast.BasicLit); ok {
			found++
			variable, _ := strconv.Unquote(literal.Value)
			for name, text := range texts {
				if !strings.Contains(text, variable) {
					t.Errorf("%s says nothing of %s", name, variable)
				}
			}
		}
		return true
	})
	if found < 10 {
		t.Errorf("%d variables", found)
	}
}
