-- Each instance says on which node it runs; before, that was the manager's own machine. A manager that knows
-- nothing of nodes must not open this file: it would take instances that live elsewhere for gone.

UPDATE instances SET document = json_set(document, '$.node_id', '');
