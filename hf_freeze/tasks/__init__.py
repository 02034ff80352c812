"""What is learned: a registry of tasks, each of which turns a dataset and a model's name into what a trainer needs."""

from hf_freeze.tasks.registry import PreparedData, Task, get_task, register_task, task_names

__all__ = ["PreparedData", "Task", "get_task", "register_task", "task_names"]
