// Renders Ollama's templates with Go's own text/template, for messages as Ollama hands them over.
//
// Reads a JSON array of {"template", "messages": [{"role", "content"}]} from standard input and
// writes an array of {"text"} or {"error"}. A template that reads .Messages gets them all; any other
// runs once for each exchange, and of the last one up to the answer.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type message struct {
	Role     string `json:"role"`
	Content  string `json:"content"`
	Thinking string
	// What templates ask for and these messages do not have.
	ToolCalls  []any
	ToolName   string
	ToolCallID string
	Images     []any
}

type task struct {
	Template string    `json:"template"`
	Messages []message `json:"messages"`
}

type result struct {
	Text  string `json:"text"`
	Error string `json:"error,omitempty"`
}

var functions = template.FuncMap{
	"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	},
}

// mentions tells whether an action prints a field.
func mentions(node *parse.ActionNode, field string) bool {
	for _, command := range node.Pipe.Cmds {
		for _, argument := range command.Args {
			if found, ok := argument.(*parse.FieldNode); ok && found.Ident[0] == field {
				return true
			}
		}
	}
	return false
}

// upToAnswer drops all that stands behind the first place where the answer is printed.
func upToAnswer(list *parse.ListNode, done *bool) {
	if list == nil {
		return
	}
	kept := []parse.Node{}
	for _, node := range list.Nodes {
		if *done {
			break
		}
		switch node := node.(type) {
		case *parse.ActionNode:
			*done = mentions(node, "Response")
		case *parse.IfNode:
			upToAnswer(node.List, done)
			upToAnswer(node.ElseList, done)
		case *parse.WithNode:
			upToAnswer(node.List, done)
			upToAnswer(node.ElseList, done)
		case *parse.RangeNode:
			upToAnswer(node.List, done)
			upToAnswer(node.ElseList, done)
		}
		kept = append(kept, node)
	}
	list.Nodes = kept
}

func render(given task) (text string, err error) {
	source := given.Template
	all := strings.Contains(source, ".Messages")
	if !all && !strings.Contains(source, ".Response") {
		source += "{{ .Response }}"
	}
	made, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(source)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	execute := func(values map[string]any) error {
		values["Think"], values["IsThinkSet"], values["ThinkLevel"] = false, false, ""
		return made.Execute(&out, values)
	}
	if all {
		system := []string{}
		for _, each := range given.Messages {
			if each.Role == "system" {
				system = append(system, each.Content)
			}
		}
		err = execute(map[string]any{
			"System":   strings.Join(system, "\n\n"),
			"Messages": given.Messages,
			"Tools":    []any(nil),
			"Response": "",
		})
		return out.String(), err
	}
	turn := map[string]any{"System": "", "Prompt": "", "Response": ""}
	flush := func() error {
		err := execute(turn)
		turn = map[string]any{"System": "", "Prompt": "", "Response": ""}
		return err
	}
	for _, each := range given.Messages {
		if (each.Role == "user" && turn["Response"] != "") ||
			(each.Role == "system" && (turn["Prompt"] != "" || turn["Response"] != "")) {
			if err := flush(); err != nil {
				return "", err
			}
		}
		name := map[string]string{"system": "System", "user": "Prompt", "assistant": "Response"}
		turn[name[each.Role]] = each.Content
	}
	done := false
	upToAnswer(made.Tree.Root, &done)
	err = flush()
	return out.String(), err
}

func main() {
	var tasks []task
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	results := make([]result, len(tasks))
	for i, each := range tasks {
		text, err := render(each)
		results[i].Text = text
		if err != nil {
			results[i].Error = err.Error()
		}
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	_ = out.Encode(results)
}
