document.title = "agentmgr";
